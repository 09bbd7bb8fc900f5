"""A tokenizer over which the library ends in a panic: one line of ours, and nothing of its own on stderr."""

import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import penstock

STORE = Path(__file__).parents[1] / "old_formats" / "train" / "tokenizer"


def lost(post: dict) -> None:
    post["special_tokens"].clear()


def unknown(post: dict) -> None:
    post["single"].insert(0, {"SpecialToken": {"id": "[NONE]", "type_id": 0}})


@pytest.mark.parametrize("change", [lost, unknown])
@pytest.mark.parametrize("command", ["prepare", "open"])
def test_one_line_and_no_panic(tmp_path, change, command):
    folder = tmp_path / "tokenizer"
    shutil.copytree(STORE, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content["post_processor"])
    file.write_text(json.dumps(content))
    (tmp_path / "a.csv").write_text("text,label\na film,1\nb,2\n")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    given = folder if command == "prepare" else file
    done = penstock("prepare", tmp_path / "a.csv", "--out", tmp_path / "store", "--tokenizer", given)
    assert done.returncode == 4, done.stderr
    assert "panicked" not in done.stderr
    said = done.stderr.strip().splitlines()
    assert said[-1].startswith("penstock: tokenizer ")
    assert before is None or len(os.listdir("/proc/self/fd")) == before
