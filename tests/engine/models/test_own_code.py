"""Code that a model or a tokenizer brings is never run, and nobody is asked whether it may be."""

import ast
import builtins
import json
import shutil
from pathlib import Path

import pytest
from command_line import penstock
from earlier_runs import as_before_checksums
from subtested import as_subtests
from tiny_encoders import stock_model

from penstock.engine.data.tokenizers import load_tokenizer
from penstock.engine.errors import ModelError, TokenizerError
from penstock.engine.models import EncoderClassifier, ModelSettings, build_model, load_model
from penstock.engine.models.loading import load_config

ENGINE = Path(__file__).resolve().parents[3] / "engine"
OF_OURS = {
    "nn.Embedding",
    "EncoderClassifier",
    "EncoderForPretraining",
}  # a table; what goes through load_config itself
MAPS = {
    "known architecture": {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}},
    "unknown architecture": {"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"},
    "head only": {"auto_map": {"AutoModelForSequenceClassification": "own.Model"}},
    "another repository's": {"auto_map": {"AutoModel": "someone/else--own.Model"}, "model_type": "own"},
    "kernels": {"attn_implementation": "someone/kernels"},
    "kernels by part": {"attn_implementation": {"": "eager", "text_config": "someone/kernels:fast"}},
}
OWN = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import BertConfig as Config, BertModel as Model, BertTokenizerFast as Tokenizer
"""


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr(builtins, "input", asked)


@pytest.fixture
def folder(tmp_path: Path, minilm: str) -> Path:
    """A small BERT with MiniLM's tokenizer, and Python that leaves a trace when it is run."""
    stock_model("bert").save_pretrained(tmp_path / "own")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (Path(minilm) / name).is_file():
            shutil.copyfile(Path(minilm) / name, tmp_path / "own" / name)
    (tmp_path / "own" / "own.py").write_text(OWN)
    return tmp_path / "own"


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def loaders() -> list[tuple[str, ast.Call]]:
    found = []
    for path in sorted(ENGINE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            receiver = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if name in ("from_pretrained", "from_config", "pipeline") and receiver not in OF_OURS:
                found.append((f"{path.name}:{node.lineno}", node))
    return found


def test_every_loader_refuses_it() -> None:
    assert len(loaders()) >= 5
    for place, call in loaders():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code") == "False", place


@as_subtests("kind", MAPS)
def test_a_model_with_code_of_its_own_is_refused(folder: Path, kind: str) -> None:
    edit(folder / "config.json", **MAPS[kind])
    encoder = str(folder)
    sizes = {"vocab_size": 101, "num_labels": 3}
    for load in (
        lambda: load_config(encoder),
        lambda: load_model(encoder),
        lambda: EncoderClassifier.from_pretrained(encoder),
        lambda: build_model(ModelSettings(kind="encoder", encoder=encoder), **sizes),
        lambda: build_model(ModelSettings(embeddings="encoder", encoder=encoder, hidden_size=8), **sizes),
    ):
        with pytest.raises(ModelError, match=r"config.json asks for code of its own"):
            load()
    assert not list(folder.rglob("ran"))


@pytest.mark.parametrize("code", [{"AutoTokenizer": [None, "own.Tokenizer"]}, ["own.Tokenizer", None]])
def test_a_tokenizer_with_code_of_its_own_is_refused(folder: Path, code: object) -> None:
    edit(folder / "tokenizer_config.json", auto_map=code)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json asks for code of its own"):
        load_tokenizer(str(folder))


def test_the_commands_say_so_in_one_line(folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text(
        "text,label\n" + "".join(f"a {word} film,{i % 2}\n" for i, word in enumerate(["bad", "good"] * 40))
    )
    store = tmp_path / "store"
    assert penstock("prepare", texts, "--out", store, "--tokenizer", folder, "--max-length", 16).returncode == 0
    edit(folder / "config.json", **MAPS["unknown architecture"])
    trained = tmp_path / "run"
    small = ("--train", store, "training.max_steps=1", "model.hidden_size=8", "--out", trained)
    sources = ("--train", texts, "--test", texts, "--encoder", folder, "--sizes", "20", "--seeds", "1")
    for command in (
        ("train", "--model", "encoder", "--encoder", folder, "--train", store, "--out", tmp_path / "encoder"),
        ("train", "--model", "lstm", "model.embeddings=encoder", f"model.encoder={folder}", *small),
        ("study", *sources, "--families", "lstm", "--out", tmp_path / "study"),
    ):
        done = penstock(*command, stdin=b"yes\n" * 100)
        assert (done.returncode, done.stderr.count("\n")) == (8, 1), done.stderr
        assert "asks for code of its own (own.Config)" in done.stderr
    assert penstock("train", "--model", "lstm", *small).returncode == 0
    as_before_checksums(trained)  # which would name the file first
    edit(trained / "best" / "config.json", **MAPS["known architecture"])
    done = penstock("predict", trained, texts, "--out", tmp_path / "predictions.csv", stdin=b"yes\n" * 100)
    assert done.returncode == 8, done.stderr
    assert "asks for code of its own (own.Config)" in done.stderr
    assert not list(folder.rglob("ran"))
