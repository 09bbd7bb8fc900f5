"""docs/architecture.md names functions and files: they are there, and the walk goes where it says."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROW = re.compile(r"^\| `(?P<name>[\w.:]+)` \| `(?P<file>[\w./]+)` \| (?P<what>.+) \|$", re.MULTILINE)


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]


WALK = [(row["name"], row["file"]) for row in ROW.finditer(section("One batch, from a csv line to the report"))]


def defined_in(tree: ast.Module) -> set[str]:
    """Functions, classes and `Class.method`."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{own.name}" for own in node.body if isinstance(own, ast.FunctionDef)}
    return found


def test_the_walk_is_a_straight_line():
    assert len(WALK) > 20
    files = [file for _, file in WALK]
    assert len(files) == len(set(files))


@pytest.mark.parametrize(("name", "file"), WALK, ids=[f"{name}-{file}" for name, file in WALK])
def test_each_step_is_where_the_walk_says(name, file):
    text = (ROOT / file).read_text()
    if file.endswith(".py"):
        assert name in defined_in(ast.parse(text))
    else:
        assert re.search(rf"\b{re.escape(name)}\(", text)


def test_every_file_that_the_page_names_is_there():
    names = set(re.findall(r"`((?:engine|kernels|csrc|benchmarks|packaging|tests)/[\w./*]*)`", PAGE))
    assert len(names) > 60
    assert {name for name in names if not any(ROOT.glob(name.rstrip("/") + ("" if "." in name else "*")))} == set()


def test_one_batch_goes_that_way(tmp_path):
    """A study of one trial, from a csv file to its report, calls each of the walk's functions in Python."""
    from penstock.engine.data.reviews import generate_reviews
    from penstock.engine.study.costs import Cost
    from penstock.engine.study.report import write_report
    from penstock.engine.study.settings import StudySettings
    from penstock.engine.study.sizes import parse_seeds, parse_sizes
    from penstock.engine.study.study import run_study

    for name, seed in (("train", 0), ("test", 1)):
        lines = ["text,label", *(f'"{text}",{label}' for text, label in generate_reviews(60, seed=seed))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    study = StudySettings(
        train=(str(tmp_path / "train.csv"),),
        test=(str(tmp_path / "test.csv"),),
        encoder=None,
        sizes=parse_sizes("40"),
        seeds=parse_seeds("1"),
        max_sizes={},
        families=("lstm",),
        overrides=("lstm.model.hidden_size=8", "training.max_steps=2", "training.tensorboard=false"),
    )
    wanted = {(str(ROOT / file), name.rpartition(".")[2]) for name, file in WALK if file.endswith(".py")}
    called = set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_name in names:
            called.add((str(Path(frame.f_code.co_filename).resolve()), frame.f_code.co_name))

    # of a class, its making
    wanted = {(file, "__init__" if name[0].isupper() else name) for file, name in wanted}
    names = {name for _, name in wanted}
    cost = lambda family, *_: Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1)  # noqa: E731
    sys.setprofile(note)
    try:
        run_study(study, tmp_path / "study", progress=False, measure=cost)
        write_report(tmp_path / "study")
    finally:
        sys.setprofile(None)
    assert wanted - called == set()
