import json

import numpy as np
import pytest
from subtested import as_subtests

from penstock.engine.errors import RunError
from penstock.engine.training.run_directory import MetricsLog, RunDirectory
from penstock.engine.training.run_record import read_record


def claim(path, **identity):
    """Takes the directory, as training does: a run with a checkpoint is resumed, anything else starts from nothing."""
    directory = RunDirectory(path)
    try:
        directory.open()
        if directory.has_checkpoint:
            directory.check_identity(identity)
        else:
            directory.create(identity, "a: 1\n", {"text": "t"}, np.arange(2))
    except BaseException:
        directory.__exit__()
        raise
    return directory


def checkpoint(path):
    (path / "last").mkdir()
    (path / "last" / "config.json").write_text("{}")


def test_created_then_found_again(tmp_path):
    path = tmp_path / "deep" / "run"
    with claim(path, seed=1) as directory:
        checkpoint(path)
        directory.update(status="complete", result={"x": 1})
    assert (path / "config.yaml").read_text() == "a: 1\n"
    with claim(path, seed=1) as directory:
        assert directory.is_complete
        assert read_record(path)["result"] == {"x": 1}


def test_another_run(tmp_path):
    with claim(tmp_path / "run", seed=1):
        checkpoint(tmp_path / "run")
    with pytest.raises(RunError, match="holds another run: seed is 1 there and 2 here"):
        claim(tmp_path / "run", seed=2)
    with claim(tmp_path / "run", seed=1, new_in_this_version="x"):
        pass


def test_a_run_without_a_checkpoint_makes_room(tmp_path):
    with claim(tmp_path / "run", seed=1):
        (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
        (tmp_path / "run" / "checkpoints" / ".writing").mkdir(parents=True)
        (tmp_path / "run" / "notes.txt").write_text("the user's own")
    with claim(tmp_path / "run", seed=2) as directory:
        assert directory.record["identity"] == {"seed": 2}
    own = {".lock", "config.yaml", "run.json", "validation_rows.npy"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == own | {"notes.txt"}


def test_opening_writes_nothing(tmp_path):
    with RunDirectory(tmp_path / "deep" / "run") as directory:
        assert directory.open() == {}
    assert not (tmp_path / "deep").exists()


def test_another_process(tmp_path):
    with claim(tmp_path / "run", seed=1), pytest.raises(RunError, match="in use by another process"):
        claim(tmp_path / "run", seed=1)


def test_something_else_there(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        claim(tmp_path / "file")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        claim(tmp_path)


def test_an_empty_directory_is_taken(tmp_path):
    with claim(tmp_path, seed=1):
        assert (tmp_path / "run.json").exists()


@as_subtests("text", ["", "{", "[]", '{"format": 99}'])
def test_a_damaged_record(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json (cannot be read|was written by another version)"):
        read_record(tmp_path)


def test_a_record_that_was_changed_is_no_record(tmp_path):
    """Another number is JSON as well; whoever edits it on purpose takes the checksum out."""
    with claim(tmp_path, seed=1):
        pass
    file = tmp_path / "run.json"
    record = json.loads(file.read_text())
    assert read_record(tmp_path)["identity"] == {"seed": 1}
    record["identity"]["seed"] = 3
    file.write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"run\.json is damaged: its checksum does not fit"):
        read_record(tmp_path)
    del record["crc32"]
    file.write_text(json.dumps(record))
    assert read_record(tmp_path)["identity"] == {"seed": 3}


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        read_record(tmp_path / "absent")


def test_the_log_forgets_what_came_after_the_checkpoint(tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    log.write({"step": 1})
    offset = log.sync()
    log.write({"step": 2})
    log.close()
    log = MetricsLog(file, offset)
    log.write({"step": 3})
    log.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 3]
