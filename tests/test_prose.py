"""Words that an English reader stumbles over stay out of code, comments and pages; pages are wrapped at 100 columns."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("lest", "anew", "so many", "save that", "of no meaning")
SUFFIXES = {".md", ".py", ".pyi", ".h", ".cpp", ".cu", ".in", ".toml", ".txt", ".cmake", ".yaml", ".yml", ".sh", ""}
WIDTH = 100


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [name for name in names if Path(name).suffix in SUFFIXES and not (ROOT / name).is_symlink()]


def found_words(text: str) -> list[str]:
    """The words of WORDS in a text, where a comment's or a paragraph's line breaks between them count as spaces."""
    flowing = re.sub(r"\s*\n[ \t]*(?:#+|//+|\*)?\s*", " ", text)
    return re.findall(rf"\b(?:{'|'.join(WORDS)})\b", flowing, re.IGNORECASE)


def docstrings_with_of(text: str) -> list[str]:
    nodes = ast.walk(ast.parse(text))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    return [docstring for docstring in found if re.match(r"Of\b", docstring)]


def too_wide(text: str) -> list[int]:
    """Numbers of the lines that are wider than WIDTH, but for tables, code, and what cannot be broken."""
    wide, in_code = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        breakable = " " in re.sub(r"^\s*(?:[-*] |\d+\. )?", "", line)
        if len(line) > WIDTH and breakable and not in_code and not line.startswith(("|", "![")):
            wide.append(number)
    return wide


def test_no_stilted_words() -> None:
    names = [name for name in tracked() if ROOT / name != Path(__file__)]
    assert len(names) > 300
    found = {name: words for name in names if (words := found_words((ROOT / name).read_text(errors="replace")))}
    assert not found


def test_no_docstring_begins_with_of() -> None:
    found = {name: begun for name in tracked("*.py") if (begun := docstrings_with_of((ROOT / name).read_text()))}
    assert not found


def test_pages_are_wrapped() -> None:
    pages = tracked("README.md", "docs/*.md", "csrc/*.md")
    assert "README.md" in pages
    wide = {page: lines for page in pages if (lines := too_wide((ROOT / page).read_text()))}
    assert not wide


def test_the_checks_see_what_they_are_for() -> None:
    assert found_words("# made anew, so\n# many times") == ["anew", "so many"]
    assert found_words("the newest sample, honestly") == []
    assert docstrings_with_of('def f():\n    """Of the rows."""\n\n\nclass A:\n    """Offsets."""\n') == [
        "Of the rows."
    ]
    words = "word " * 30
    assert too_wide(f"{words}\n| {words}\n```sh\n{words}\n```\n- https://{'x' * 120}\n- {words}\n") == [1, 7]
