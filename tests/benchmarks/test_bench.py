"""`penstock bench`: what it lists, writes, shows and refuses, on tiny shapes and made-up cases."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import penstock
from subtested import as_subtests

from penstock.benchmarks import machine, results, run
from penstock.benchmarks.rounds import measure
from penstock.benchmarks.suite import OURS, SUITES, Case, Options, Suite
from penstock.engine.errors import ConfigError, DiskError
from penstock.engine.machine import TICKS, Others

LINEAR = ("bench", "linear", "--shape", "16,32,32", "--rounds", "5", "--threads", "1")
TINY = {"lstm": "2,3,8,8", "attention": "2,4,2,8", "rowwise": "70,64", "linear": "16,32,32"}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch):
    import torch

    threads = torch.get_num_threads()
    monkeypatch.setattr(machine, "INTERVAL", 0.05)
    monkeypatch.setenv("PENSTOCK_ISA", os.environ.get("PENSTOCK_ISA", ""))
    yield
    torch.set_num_threads(threads)


def test_lists_the_suites() -> None:
    lines = penstock("bench").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(SUITES)


@pytest.mark.parametrize("suite", TINY)
def test_a_suite_of_own_shapes(suite: str, tmp_path: Path) -> None:
    done = penstock("bench", suite, "--shape", TINY[suite], "--rounds", "2", "--threads", "1", "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    about, rows = results.read(tmp_path / "o")
    assert about["suite"] == suite
    assert about["threads"] == 1
    assert about["versions"]["torch"]
    assert rows
    letters = SUITES[suite].letters.split(",")
    for row in rows:
        assert list(row["shape"]) == letters
        assert [*row["shape"].values()] == [int(size) for size in TINY[suite].split(",")]
        assert {len(times) for times in row["seconds"].values()} == {2} == {len(row["probe"])}
        assert len(row["seconds"]) > 1
        assert 0 < row["share"] < 1.5
        assert row["case"] in done.stdout
    page = (tmp_path / "o" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page


def test_own_type_and_no_peers(tmp_path: Path) -> None:
    done = penstock(*LINEAR, "--dtype", "float32", "--no-peers", "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    (row,) = results.read(tmp_path / "o")[1]
    assert row["dtype"] == "float32"
    assert list(row["seconds"]) == [OURS]
    assert row["ratio"] == {}


@pytest.mark.slow
@as_subtests(
    "arguments, code, said",
    [
        ("nope", 6, "lstm, attention"),
        ("--quick", 6, "which suite"),
        ("lstm --all", 6, "not both"),
        ("--all --against x", 6, "compares one suite"),
        ("--all --shape 1,2", 6, "takes no --shape"),
        ("lstm --shape 1,2,3", 6, "B,T,I,H"),
        ("lstm --shape 1,2,3,x", 6, "whole numbers"),
        ("lstm --shape 1,2,3,0", 6, "at least 1"),
        ("lstm --dtype float64", 6, "float32, bfloat16"),
        ("lstm --isa mmx", 6, "no instruction set 'mmx'"),
        ("lstm --threads 0", 6, "at least 1"),
        ("lstm --threads 100000", 6, "cores"),
        ("lstm --rounds 0", 6, "at least 1"),
        ("lstm --against nowhere", 6, "no results to compare with"),
        ("loader --shape 1,2", 6, "takes 1 number, ROWS"),
        ("loader --shape 1000 --shape 2000", 6, "one number of rows at a time"),
        ("training --shape 1000", 6, "takes no --shape"),
        ("loader --dtype float32", 6, "takes no --dtype"),
        ("loader --threads 1", 6, "takes no --threads"),
        ("gpu --rounds 3", 6, "takes no --rounds"),
        ("gpu --no-peers", 6, "takes no --no-peers"),
        ("gpu --against .", 6, "takes no --against"),
        ("linear --out full", 9, "not empty"),
        ("linear --out full/file", 9, "cannot write"),
        ("linear --out full/file/under", 9, "cannot write"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_ISA", "")  # which --isa sets for the process: put back after each case
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("here first")
    done = penstock("bench", *arguments.split())
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.slow
def test_a_run_against_an_earlier_one(tmp_path: Path) -> None:
    assert penstock(*LINEAR, "--out", tmp_path / "old").returncode == 0
    lines = (tmp_path / "old" / results.FILE).read_text().splitlines()
    row = json.loads(lines[1])

    def earlier(factor: float) -> Path:
        """As if ours had taken `factor` times as long."""
        changed = row | {"seconds": row["seconds"] | {OURS: [factor * s for s in row["seconds"][OURS]]}}
        path = tmp_path / f"{factor}.jsonl"
        path.write_text(f"{lines[0]}\n{json.dumps(changed)}\n")
        return path

    for factor, code, verdict in ((1e-4, run.SLOWER, "slower"), (1e4, 0, "faster")):
        done = penstock(*LINEAR, "--against", earlier(factor), "--out", tmp_path / verdict)
        assert done.returncode == code, done.stderr
        assert f": {verdict}, new/old" in done.stdout
        assert "Against the earlier run" in (tmp_path / verdict / "report.html").read_text()


@pytest.mark.slow
def test_an_earlier_run_of_something_else(tmp_path: Path) -> None:
    assert penstock(*LINEAR, "--out", tmp_path / "old").returncode == 0
    first, row = (tmp_path / "old" / results.FILE).read_text().splitlines()
    other = tmp_path / "other.jsonl"
    for change, said in (({"suite": "lstm"}, "another suite"), ({"processor": "Z80"}, "another machine")):
        other.write_text(f"{json.dumps(json.loads(first) | change)}\n{row}\n")
        done = penstock(*LINEAR, "--against", other, "--out", tmp_path / "new")
        assert (done.returncode, len(done.stderr.splitlines())) == (6, 1)
        assert said in done.stderr
    done = penstock("bench", "linear", "--shape", "8,32,32", "--against", tmp_path / "old", "--out", tmp_path / "new")
    assert done.returncode == 6
    assert "no case in common" in done.stderr
    for text in ("", "no json\n", "[]\n", f"{first}\nbroken\n{row}\n", f'{first}\n{{"a": 1}}\n'):
        other.write_text(text)
        done = penstock(*LINEAR, "--against", other, "--out", tmp_path / "new")
        assert (done.returncode, len(done.stderr.splitlines())) == (6, 1), text
    assert not (tmp_path / "new").exists()


# made-up cases


def case(name: str, ours: Any = lambda: None, **peers: Any) -> Case:
    return Case(name, {"N": 1}, "float32", lambda with_peers: {OURS: ours, **(peers if with_peers else {})}, 1.0)


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    made = case(
        "turns",
        lambda: (time.sleep(0.006), calls.append("ours")),
        peer=lambda: (time.sleep(0.006), calls.append("peer")),
    )
    row = measure(made, Options(rounds=3), None)
    assert calls[-6:] == ["ours", "peer"] * 3
    assert [len(times) for times in row["seconds"].values()] == [3, 3]
    assert row["ratio"]["peer"][1] == pytest.approx(1, rel=0.5)


def test_a_peer_that_fails_or_is_not_there_is_named() -> None:
    def fails() -> None:
        raise RuntimeError("no such\nkernel")

    row = measure(case("peers", fails=fails, absent="not installed: onnx"), Options(rounds=2), None)
    assert list(row["seconds"]) == [OURS]
    assert row["missing"] == {"fails": "RuntimeError: no such kernel", "absent": "not installed: onnx"}


def test_ours_that_fails_leaves_the_others(monkeypatch, tmp_path: Path, capfd) -> None:
    def fails() -> None:
        raise ValueError("wrong")

    made = [case("first"), case("second", fails), case("third")]
    monkeypatch.setattr(Suite, "cases", lambda self, options: iter(made))
    assert run.run(SUITES["linear"], Options(rounds=2), tmp_path / "o") == run.FAILED
    assert [row["what"] for row in results.read(tmp_path / "o")[1]] == ["first", "third"]
    assert "second N1 float32 failed: ValueError: wrong" in capfd.readouterr().err


STOPPED = """
import sys, time
from pathlib import Path
from penstock.benchmarks import run
from penstock.benchmarks.suite import OURS, SUITES, Case, Options, Suite
def cases(self, options):
    for name, work in (("first", lambda: None), ("second", lambda: time.sleep(600))):
        yield Case(name, {"N": 1}, "float32", lambda peers, work=work: {OURS: work}, 1.0)
Suite.cases = cases
sys.exit(run.run(SUITES["linear"], Options(rounds=2), Path(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.usefixtures("heard_signals")
def test_a_stop_leaves_what_was_measured(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "o")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "results in" in process.stdout.readline()
        assert process.stdout.readline().startswith("first")
        process.send_signal(sent)
        said = process.stderr.read()
    assert process.returncode == code
    assert [row["what"] for row in results.read(tmp_path / "o")[1]] == ["first"]
    if sent != signal.SIGKILL:
        assert f"stopped; 1 cases are in {tmp_path / 'o' / results.FILE}" in said
        assert "Traceback" not in said


def test_a_row_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / results.FILE
    file.write_text('{"format": 1, "suite": "linear"}\n{"case": "a", "seconds": {}}\n{"case": "b", "sec')
    assert [row["case"] for row in results.read(tmp_path)[1]] == ["a"]
    file.write_text('{"format": 2}\n')
    with pytest.raises(ConfigError, match="this version"):
        results.read(file)


def test_results_do_not_overwrite(tmp_path: Path) -> None:
    results.Results(tmp_path / "o", "linear", {}).close()
    with pytest.raises(DiskError, match="not empty"):
        results.Results(tmp_path / "o", "linear", {})


# the machine


def proc(folder: Path, busy: int, idle: int, own: int, ended: int = 0) -> Path:
    (folder / "7" / "task" / "7").mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(f"cpu {busy} 0 0 {idle} 0 0 0 0 0 0\n")
    (folder / "7" / "stat").write_text(f"7 (a (b) c) S {'0 ' * 10}{own} 0 {ended} 0 20\n")
    (folder / "7" / "task" / "7" / "children").write_text("")
    return folder


def test_others_are_what_is_busy_without_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    others = Others(proc(tmp_path, 100, 100, 50), own=7)
    proc(tmp_path, 250, 150, 90, ended=10)  # 200 ticks, 150 of them busy, 50 of these ours
    assert others.cores() == pytest.approx(1.0)
    assert "other processes use 1.0 of 2 cores" in machine.busy_line(1.0)
    proc(tmp_path, 300, 300, 140, ended=10)
    assert others.cores() == 0
    assert machine.busy_line(0.05) == machine.busy_line(None) == ""
    assert Others(tmp_path / "nowhere").cores() is None


@pytest.mark.slow
def test_own_work_and_that_of_ended_children_is_ours() -> None:
    others = Others()
    before = others._look()
    child = "import time\nwhile time.process_time() < 0.3: pass"
    with subprocess.Popen([sys.executable, "-c", child]):
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
    after = others._look()
    if before is None or after is None:
        pytest.skip("no /proc/stat here")
    assert after[2] - before[2] >= 0.5 * TICKS


# suites of pytest-benchmark


@pytest.mark.slow
def test_rows_of_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """Each test's row comes as it ends; a failure and a skip are said; peers take part or not, never both."""
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "bench_made_up.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('peers', [False, True], ids=['alone', 'peers'])\n"
        "def test_made(benchmark, peers):\n"
        "    benchmark.pedantic(lambda: None, rounds=2)\n"
        "    torch = {'torch': [2.0, 4.0]} if peers else {}\n"
        "    benchmark.extra_info.update(rounds={'penstock': [1.0, 1.0], **torch}, rows=9)\n"
        "def test_plain(benchmark):\n    benchmark(lambda: None)\n"
        "def test_wrong(benchmark):\n    assert 1 == 2\n"
        "def test_absent(benchmark):\n    pytest.skip('no data')\n"
    )
    suite = Suite("made", "up", pytest=(str(tmp_path / "bench_made_up.py"),))
    assert run.run(suite, Options(rounds=2), tmp_path / "o") == run.FAILED
    rows = {row["case"]: row for row in results.read(tmp_path / "o")[1]}
    assert list(rows) == ["made", "plain"]
    assert rows["made"]["ratio"]["torch"][1] == 3
    assert rows["made"]["found"] == {"rows": 9}
    error = capfd.readouterr().err
    assert "wrong failed: assert 1 == 2" in error
    assert "absent skipped: no data" in error
    assert run.run(suite, Options(peers=False), tmp_path / "alone") == run.FAILED
    assert list(results.read(tmp_path / "alone")[1][0]["seconds"]) == [OURS]


@pytest.mark.slow
@pytest.mark.usefixtures("heard_signals")
def test_a_stop_ends_pytest_too(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "bench_endless.py").write_text(
        "import os, pathlib, time\n"
        "def test_first(benchmark):\n    benchmark.pedantic(lambda: None, rounds=2)\n"
        "def test_second(benchmark):\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    code = (
        "import sys; from pathlib import Path; from penstock.benchmarks import run\n"
        "from penstock.benchmarks.suite import Options, Suite\n"
        "run.run(Suite('made', 'up', pytest=(sys.argv[1],)), Options(), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bench_endless.py"), str(tmp_path / "o")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "results in" in process.stdout.readline()
        assert process.stdout.readline().startswith("first")
        until = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "stopped; 1 cases" in process.stderr.read()
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert [row["case"] for row in results.read(tmp_path / "o")[1]] == ["first"]


def test_all_runs_each_and_goes_on_after_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def broken() -> None:
        raise ValueError("wrong")

    monkeypatch.setattr(
        Suite, "cases", lambda self, _: iter([case("one", broken if self.name == "a" else lambda: None)])
    )
    monkeypatch.setattr(run, "SUITES", {name: Suite(name, name, module="made up") for name in "ab"})
    assert run.run_all(Options(rounds=2), tmp_path / "o") == run.FAILED
    assert [row["what"] for row in results.read(tmp_path / "o" / "b")[1]] == ["one"]
    assert "no case was timed" in capfd.readouterr().err


@pytest.mark.slow
def test_gpu_is_that_of_its_folder(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("takes minutes on a GPU")
    done = penstock("bench", "gpu", "--quick", "--out", tmp_path / "o")
    assert done.returncode == 11
    assert "no NVIDIA GPU here" in done.stderr
