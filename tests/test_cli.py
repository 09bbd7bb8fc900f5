import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from command_line import penstock as in_this_process
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine import cli

ROOT = Path(__file__).resolve().parents[1]
PENSTOCK = Path(sys.executable).with_name("penstock")
COMMANDS = [
    "prepare",
    "verify",
    "inspect",
    "train",
    "evaluate",
    "predict",
    "export",
    "study",
    "report",
    "bench",
    "doctor",
]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PENSTOCK, *arguments],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def check_doctor(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
    assert "compiled core" in result.stdout
    for operation in ("lstm", "varlen_attention", "segment_pool"):
        assert operation in result.stdout


@pytest.mark.slow
def test_doctor_works_from_any_directory(tmp_path: Path) -> None:
    check_doctor(run("doctor", cwd=tmp_path))


def test_doctor_names_an_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_ISA", "mmx")
    monkeypatch.setenv("COLUMNS", "200")
    result = in_this_process("doctor")
    assert result.returncode == 1
    assert "no instruction set 'mmx' here" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.slow
def test_doctor_works_in_the_checkout_beside_the_hubs_kernels(tmp_path: Path) -> None:
    """PyPI's `kernels` owns the bare name; importing it and ours in one process must do no harm."""
    hub = tmp_path / "kernels"
    hub.mkdir()
    (hub / "__init__.py").write_text("__version__ = '0.1.0'\nHUB = True\n")
    check_doctor(run("doctor", cwd=ROOT, PYTHONPATH=str(tmp_path)))
    both = "import kernels, penstock.kernels as ours; assert kernels.HUB and not hasattr(ours, 'HUB')"
    subprocess.run(
        [sys.executable, "-c", both], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=True
    )


def test_help_is_instant_and_shows_an_example(tmp_path: Path) -> None:
    start = time.perf_counter()
    result = run("--help", cwd=tmp_path)
    assert time.perf_counter() - start < 5, "penstock --help must not import torch"
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.slow
@as_subtests("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"penstock {command}" in result.stdout.replace(f"Usage: penstock {command}", ""), "no example"


def test_a_mistake_ends_in_one_line_and_its_own_exit_code(tmp_path: Path) -> None:
    result = run("verify", "no-such-store", cwd=tmp_path)
    assert result.returncode == 5
    assert result.stderr.count("\n") == 1
    assert "no-such-store" in result.stderr


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version(option: str) -> None:
    result = in_this_process(option)
    assert (result.returncode, result.stdout) == (0, f"penstock {version('penstock')}\n")


def options_of(command: str) -> list[tuple[str, bool, bool]]:
    """(name, whether it may be repeated, whether it is a flag) of each option."""
    parameters = typer.main.get_command(cli.app).commands[command].params  # type: ignore[attr-defined]
    return [
        (parameter.opts[0], parameter.multiple, parameter.is_flag)
        for parameter in parameters
        if parameter.param_type_name == "option" and not parameter.is_eager
    ]


@pytest.mark.slow
@as_subtests("command", COMMANDS)
def test_an_option_with_one_value_is_given_once(command: str) -> None:
    """Every option of every command, whoever adds it."""
    for name, multiple, is_flag in options_of(command):
        once = [name] if is_flag else [name, "7"]
        result = CliRunner().invoke(cli.app, [command, *once, *once], env={"COLUMNS": "200"})
        assert ("given more than once" in result.output) == (not multiple), (name, result.output)
        if not multiple:
            assert (result.exit_code, name in result.output) == (2, True)


@as_subtests(
    "arguments, meant",
    [
        (["trian"], "train"),
        (["inspekt"], "inspect"),
        (["prepare", "--max-lenght", "3"], "--max-length"),
        (["study", "--tran", "a.csv"], "--train"),
        (["inspect", "a.csv", "--agianst", "b.csv"], "--against"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(arguments: list[str], meant: str) -> None:
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert meant in result.output


# What is wrong is wrong whatever the data says: (arguments, exit code, a part of the message).
MISTAKES = [
    ("study --train a.csv b.csv --test a.csv", 6, "--train a.csv --train b.csv"),
    ("study --train nope.csv --test nope.csv bert.training.epochs=3", 6, "bert.training.epochs"),
    ("study --train a.csv --test a.csv training.epohcs=3", 6, "training.epochs"),
    ("study --train a.csv --test a.csv lstm.training.epochs=many", 6, "a whole number"),
    ("study --train a.csv --test a.csv --sizes 1x", 6, "1x"),
    ("study --train a.csv --test a.csv --seeds none", 6, "none"),
    ("study --train a.csv --test a.csv --families gru", 6, "gru"),
    ("study --train a.csv --test a.csv --max-size gru=5", 6, "gru"),
    ("study --train a.csv --test a.csv --max-size bag=10 --max-size bag=5", 6, "bag is given twice; leave one out"),
    ("study --train a.csv --test a.csv --truncation middle", 6, "head+tail"),
    ("study --train a.csv --test a.csv --bad-rows drop", 6, "quarantine"),
    ("study --train a.csv --test a.csv --budget soon", 6, "--budget 'soon'"),
    ("study --train a.csv --test a.csv --sizes 1x --plan", 6, "1x"),
    ("study --train a.csv", 6, "--test"),
    ("study --train a.csv --test nope.csv", 3, "nope.csv"),
    ("study --train nope.csv --test a.csv", 3, "nope.csv"),
    ("study --train a.csv --test a.csv --text body", 3, "body"),
    ("study --train a.csv --test a.csv --encoder ./nope", 8, "./nope"),
    ("study --train a.csv --test a.csv --encoder a/b/c", 8, "a/b/c"),
    ("study --train a.csv --test a.csv --encoder full", 8, "config.json"),
    ("study --train a.csv --test a.csv encoder.model.encoder=./nope", 8, "./nope"),
    ("study --train a.csv --test a.csv --out a.csv", 7, "a.csv"),
    ("study --train a.csv --test a.csv --out full", 7, "full"),
    ("report nope", 7, "nope"),
    ("report full", 7, "full"),
    ("prepare nope.csv --out o --tokenizer ./full", 3, "nope.csv"),
    ("prepare a.csv --out o", 6, "tokenizer"),
    ("prepare a.csv ./a.csv --out o --tokenizer ./full", 3, "a.csv is given twice, also as ./a.csv"),
    ("inspect a.csv ./a.csv", 3, "a.csv is given twice, also as ./a.csv"),
    ("prepare a.csv --out o --tokenizer ./nope", 4, "./nope"),
    ("prepare a.csv --out o --tokenizer train:bpe", 4, "train:bpe:N"),
    ("prepare a.csv --out o --tokenizer ./full --max-length 0", 6, "max length"),
    ("prepare a.csv --out o --tokenizer ./full --truncation middle", 4, "head+tail"),
    ("prepare a.csv --out o --tokenizer ./full --bad-rows drop", 6, "quarantine"),
    ("prepare a.csv --out o --tokenizer ./full --label stars", 3, "stars"),
    ("prepare a.csv --out full --tokenizer ./full", 5, "full"),
    ("prepare a.csv --out a.csv --tokenizer ./full", 5, "a.csv"),
    ("prepare a.csv --out o --like nope", 5, "nope"),
    ("prepare a.csv --out o --tokenizer ./full --shard 3", 6, "i/n"),
    ("prepare '' --out o --tokenizer ./full", 3, "'': no such file"),
    ("inspect ''", 3, "'': no such file"),
    ("inspect a.csv --against ''", 3, "'': no such file"),
    ("study --train '' --test a.csv", 3, "'': no such file"),
    ("study --train a.csv --test ''", 3, "'': no such file"),
    ("verify nope", 5, "nope"),
    ("inspect nope.csv", 3, "nope.csv"),
    ("inspect a.csv --against nope.csv", 3, "nope.csv"),
    ("inspect a.csv --label stars", 3, "stars"),
    ("inspect a.csv --out a.txt", 6, ".jsonl"),
    ("inspect a.csv --out a.csv", 6, "being read"),
    ("inspect a.csv --out nope/found.csv", 9, "nope"),
    ("prepare a.csv --out o --tokenizer ./full --separator many", 6, "one character"),
    ("prepare a.csv --out o --tokenizer ./full --encoding klingon", 6, "cp1252"),
    ("prepare a.csv --out o --tokenizer ./full --encoding base64", 6, "cp1252"),
    ("inspect a.csv --separator many", 6, "one character"),
    ("inspect a.csv --encoding klingon", 6, "cp1252"),
    ("inspect a.csv --encoding base64", 6, "cp1252"),
    ("study --train a.csv --test a.csv --separator many", 6, "one character"),
    ("study --train a.csv --test a.csv --encoding klingon", 6, "cp1252"),
    ("study --train a.csv --test a.csv --encoding base64", 6, "cp1252"),
    ("evaluate run --data a.csv --separator many", 6, "one character"),
    ("evaluate run --data a.csv --encoding klingon", 6, "cp1252"),
    ("evaluate run --data a.csv --encoding base64", 6, "cp1252"),
    ("predict run a.csv --out - --separator many", 6, "one character"),
    ("predict run a.csv --out - --encoding klingon", 6, "cp1252"),
    ("predict run a.csv --out - --encoding base64", 6, "cp1252"),
    ("inspect utf16.csv", 3, "--encoding utf-16-le"),
    ("study --train utf16.csv --test a.csv", 3, "--encoding utf-16-le"),
    ("study --train a.csv --test a.csv --separator ;", 3, "--text"),
    ("train --train a.csv --out o", 5, "penstock prepare a.csv"),
    ("train --train empty.csv --out o", 5, "penstock prepare empty.csv"),
    ("train --train nope.csv --out o", 5, "nope.csv"),
    ("train --train nope.csv --out o --encoder ./nope", 8, "encoder ./nope: no such folder"),
    ("train --train nope.csv --out o --encoder a/b/c", 8, "no name that the hub could have"),
    ("prepare a.csv --out o --tokenizer ./full --text text,label,text", 3, "text+label+text"),
    ("prepare a.csv --out o --tokenizer ./full --text text,bdy", 3, "no column 'bdy'"),
    ("prepare a.csv --out o --tokenizer ./full --text text+bdy", 3, "no column 'bdy'"),
    ("inspect a.csv --text text,label,text", 3, "text+label+text"),
    ("inspect a.csv --text text,bdy", 3, "no column 'bdy'"),
    ("inspect a.csv --text text+bdy", 3, "no column 'bdy'"),
    ("study --train a.csv --test a.csv --text text,label,text", 3, "text+label+text"),
    ("study --train a.csv --test a.csv --text text,bdy", 3, "no column 'bdy'"),
    ("study --train a.csv --test a.csv --text text+bdy", 3, "no column 'bdy'"),
    ("export onnx nope --out o.onnx", 7, "nope"),
    ("export onnx full --out o.onnx", 7, "full"),
    ("export onnx full --out o.txt", 6, ".onnx"),
    ("bench nope", 6, "attention"),
]
SLOW_IMPORTS = ["torch", "transformers", "scipy", "matplotlib", "pandas", "datasets"]
TRY_ALL = """
import contextlib, io, json, shlex, sys
from penstock.engine import cli
outcomes = []
for line in json.loads(sys.argv[1]):
    sys.argv[1:] = shlex.split(line)
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = exit.code
    outcomes.append([line, code, error.getvalue(), [name for name in SLOW_IMPORTS if name in sys.modules]])
print(json.dumps(outcomes))
"""


def test_mistakes_are_found_before_a_slow_library_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\none,1\ntwo,2\n")
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "utf16.csv").write_bytes("text,label\none,1\ntwo,2\n".encode("utf-16-le"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}")
    lines = [
        f"{line} --encoder encoder" if line.startswith("study") and "--encoder" not in line else line
        for line, _, _ in MISTAKES
    ]
    program = f"SLOW_IMPORTS = {SLOW_IMPORTS}\n{TRY_ALL}"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    for (line, code, part), (_, found, message, imported) in zip(MISTAKES, outcomes, strict=True):
        assert (found, imported) == (code, []), (line, message)
        assert part in message, (line, message)
        assert message.count("\n") == 1, (line, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "empty.csv", "encoder", "full", "utf16.csv"], (
        "a mistake left something behind"
    )
