"""The documentation's commands and snippets run as they stand.

Every ```sh and ```python block of README.md and docs/*.md runs, page by page and in order, in a folder that holds what
the pages speak of (`write_examples`). A comment on the line before a block says where that is not so:

<!-- not run: why -->   the block cannot run here; its test is skipped with the reason
<!-- slow: why -->      left out where README.md runs in one process

Nothing in a block is changed. Training that sets no `training.max_steps` of its own gets STEPS of them, so that a page
takes seconds; and the folder `roberta-base` is a small random encoder, which a command finds before the hub's.
"""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import transformers
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.tokenizer_training import parse_train_spec, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
LINKED = [*PAGES, "csrc/lstm/cuda/README.md"]
STEPS = "training.max_steps=4"
SHORTENED = ("train", "distil", "study")

BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>not run|slow): (?P<why>[^\n]+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>sh|python)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    mark: str | None
    why: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """What it asks penstock for, without the name: of a pipeline or a torchrun too."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines() if self.language == "sh" else []
        found = []
        for line in lines:
            words = shlex.split(line, comments=True)
            for begin in ("penstock", "penstock.engine.cli"):
                if begin in words:
                    command = words[words.index(begin) + 1 :]
                    found.append(command[: command.index(">")] if ">" in command else command)
        return found


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start("text")),
            match["language"],
            re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            match["mark"],
            match["why"],
        )
        for match in BLOCK.finditer(text)
    ]


BLOCKS = {page: blocks_of(page) for page in PAGES}
ALL_BLOCKS = [block for blocks in BLOCKS.values() for block in blocks]


def write_examples(folder: Path) -> None:
    """What the pages take for granted: labelled texts, texts to classify, and an encoder."""
    reviews = list(generate_reviews(1_000, seed=0))
    write_csv(folder / "reviews.csv", ["text", "stars"], reviews)
    write_csv(folder / "held-out.csv", ["text", "stars"], generate_reviews(200, seed=1))
    write_csv(folder / "new.csv", ["id", "text"], enumerate(text for text, _ in generate_reviews(20, seed=2)))
    tags = {1: "bad", 2: "bad|dull", 3: "", 4: "good", 5: "good|bright"}
    write_csv(folder / "tagged.csv", ["text", "tags"], ((text, tags[stars]) for text, stars in reviews[:200]))
    articles = (
        {"title": text[:20], "body": text[20:], "topic": "long" if len(text) > 200 else "short"} for text, _ in reviews
    )
    (folder / "articles.jsonl").write_text("".join(json.dumps(article) + "\n" for article in articles))
    spec = parse_train_spec("train:bpe:400")
    assert spec is not None
    tokenizer = train_tokenizer(spec, lambda: [[text for text, _ in reviews]])
    tokenizer.save_pretrained(folder / "roberta-base")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "roberta-base")


def write_csv(path: Path, header, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def run_in_bash(block: Block, folder: Path) -> None:
    """Each command in a process of its own, as somebody types them."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HF_HUB_OFFLINE": "1",
    }
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    else:
        shortened = "|".join(rf"{name}\ *" for name in SHORTENED)
        shorter = f"""penstock() {{
            case "$* " in
                *training.max_steps=*) command penstock "$@";;
                {shortened}) command penstock "$1" {STEPS} "${{@:2}}";;
                *) command penstock "$@";;
            esac
        }}
        """
        command = ["bash", "-euo", "pipefail", "-c", shorter + block.text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout}\n{done.stderr}"


def run_in_process(block: Block) -> None:
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
        return
    for command in block.commands:
        own = any(each.startswith("training.max_steps=") for each in command)
        shortened = [command[0], STEPS, *command[1:]] if command[0] in SHORTENED and not own else command
        result = CliRunner().invoke(app, shortened, catch_exceptions=False)
        assert result.exit_code == 0, f"{block}\n{command}\n{result.output}"


def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples(tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS["README.md"]:
        if block.mark is None:
            run_in_process(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]])
def test_pages_run(page: str, tmp_path: Path) -> None:
    write_examples(tmp_path)
    for block in BLOCKS[page]:
        if block.mark != "not run":
            run_in_bash(block, tmp_path)


@as_subtests("block", [block for block in ALL_BLOCKS if block.mark == "not run"])
def test_not_run(block: Block) -> None:
    pytest.skip(f"{block}: {block.why}")


@as_subtests("block", [block for block in ALL_BLOCKS if block.commands])
def test_options_exist(block: Block) -> None:
    """Also of blocks that are not run."""
    for command in block.commands:
        for option in (word for word in command if word.startswith("--")):
            assert option in _help(command[0])


@cache
def _help(command: str) -> str:
    return CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output


def test_kernels_stand_on_their_own() -> None:
    snippets = [block for block in ALL_BLOCKS if block.language == "python" and "penstock.kernels" in block.text]
    assert snippets
    assert not [block for block in snippets if "penstock.engine" in block.text]


def test_every_fenced_block_is_known() -> None:
    """A block in another language, or with a mark that is misspelt, would silently not be run."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        fences = re.findall(r"^ *```(\S*)$", text, re.MULTILINE)
        languages = fences[::2]
        assert set(languages) <= {"sh", "python", "text", "{eval-rst}"}, page
        assert sum(language in ("sh", "python") for language in languages) == len(BLOCKS[page]), page
        marks = re.findall(r"^ *<!-- (.+) -->$", text, re.MULTILINE)
        assert len(marks) == sum(block.mark is not None for block in BLOCKS[page]), page


@as_subtests("page", [page for page in LINKED if page != "docs/log.md"])
def test_paths_exist(page: str) -> None:
    """What a page names in code as a path of this tree is there; the log names what was there at its time."""
    folders = "engine|kernels|csrc|benchmarks|tests|docs|examples|packaging"
    named = re.findall(rf"`((?:{folders})/[\w./*-]*)`", (ROOT / page).read_text())
    assert [path for path in named if not list(ROOT.glob(path))] == []


@as_subtests("page", LINKED)
def test_links_resolve(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        file = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{page} links to {target}#{anchor}"


def test_the_walk_is_that_of_the_code() -> None:
    """Architecture's walk names a function and its file in each row: it is defined there, and no file comes twice."""
    rows = re.findall(r"^\| `([\w.:]+)` \| `([\w./]+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    assert len({file for _, file in rows}) == len(rows)
    for function, file in rows:
        source = (ROOT / file).read_text()
        for part in re.split(r"\.|::", function):
            assert re.search(rf"^ *(?:def|class|void) (?:\w+::)?{part}\b", source, re.MULTILINE), (
                f"{function} in {file}"
            )
