import json

import pytest

from penstock.engine.errors import RunError
from penstock.engine.training.run_directory import MetricsLog, RunDirectory, read_record


def claim(path, **identity):
    directory = RunDirectory(path)
    directory.claim(identity, "a: 1\n", {"text": "t"})
    return directory


def test_created_then_found_again(tmp_path):
    path = tmp_path / "deep" / "run"
    with claim(path, seed=1) as directory:
        directory.update(status="complete", result={"x": 1})
    assert (path / "config.yaml").read_text() == "a: 1\n"
    with claim(path, seed=1) as directory:
        assert directory.is_complete
        assert read_record(path)["result"] == {"x": 1}


def test_another_run(tmp_path):
    with claim(tmp_path / "run", seed=1):
        pass
    with pytest.raises(RunError, match="holds another run: seed is 1 there and 2 here"):
        claim(tmp_path / "run", seed=2)
    with claim(tmp_path / "run", seed=1):
        pass


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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_a_damaged_record(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json (cannot be read|was written by another version)"):
        read_record(tmp_path)


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
