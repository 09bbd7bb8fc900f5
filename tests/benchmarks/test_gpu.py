"""The GPU benchmark, without a GPU: its arithmetic, its bookkeeping, and every line of it in smoke runs."""

import contextlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling import WHOLE
from torch._subclasses.fake_tensor import FakeTensorMode

from penstock.benchmarks.gpu import (
    attention,
    backends,
    cells,
    correctness,
    floors,
    lstm,
    machine,
    page,
    parts,
    probes,
    rehearsal,
    runner,
)
from penstock.benchmarks.gpu import part as child
from penstock.benchmarks.gpu.__main__ import main
from penstock.benchmarks.gpu.context import FAILED, NO_GPU, ROW, WRONG, Context, WrongResultError
from penstock.benchmarks.gpu.lstm_layer import Layer
from penstock.benchmarks.gpu.results import Results
from penstock.benchmarks.gpu.targets import outcomes, proven, verdict
from penstock.benchmarks.gpu.timing import compare
from penstock.benchmarks.gpu.training_lstm import collated
from penstock.benchmarks.random_store import word_tokenizer, write_store
from penstock.kernels import dispatch

CPU = torch.device("cpu")
RATES = {"bytes": 4e12, "bf16": 8e14, "fp16": 8e14, "tf32": 4e14}


def smoke(folder: Path, **changes: object) -> Context:
    return Context(
        **{"smoke": True, "deadline": time.monotonic() + 60, "scratch": str(folder), "rates": RATES, **changes}
    )


# floors, by hand


def test_floor_of_a_layer():
    # 3 tokens in 2 sequences, I = 5, H = 7, two directions: 28 gates meet 12 numbers, a multiply-add is two operations
    forward = floors.lstm_layer("forward", 3, 2, 5, 7, 2, 2)
    assert forward.flops == 3 * 28 * 12 * 2 * 2
    # bf16: x 15, y 42, weights 2 x 28 x (5 + 7 + two biases), h_n and c_n 2 x 2 x 2 x 7
    assert forward.bytes == 2 * (15 + 42 + 784 + 56)
    training = floors.lstm_layer("training", 3, 2, 5, 7, 2, 2)
    assert training.flops == 3 * forward.flops
    # and in backward: x 15, dy 42, weights 784 read; dx 15, dweights 784 written
    assert training.bytes == forward.bytes + 2 * (15 + 42 + 784 + 15 + 784)


def test_floor_is_the_longer_of_arithmetic_and_bytes():
    assert floors.Work(8e14, 4e12 * 3).seconds(8e14, 4e12) == 3
    assert floors.Work(8e14 * 5, 4e12).seconds(8e14, 4e12) == 5


def test_floor_of_attention():
    # lengths 3 and 1: ten scores a head, each of 2 x 4 operations for q k^T and as many for the weighted sum
    work = floors.attention("inference", [3, 1], 2, 4, 2)
    assert work.flops == 10 * 2 * (2 * 4 + 2 * 4)
    assert work.bytes == 4 * (4 * 2 * 4) * 2
    training = floors.attention("training", [3, 1], 2, 4, 2)
    assert training.flops == work.flops * (2 + 5) / 2
    assert training.bytes == 3 * work.bytes


def test_floors_of_whole_models():
    # lstm-4-256: 8 H (I + H) multiply-adds a token for I = 256 once and for I = 512 three times
    per_token = 6 * (2 * 1024 * (256 + 256) + 3 * 2 * 1024 * (512 + 256))
    assert floors.lstm_classifier([10, 20], 256, 256, 4) == 30 * per_token
    # RoBERTa-base: 84.93 M weights, 509.6 M operations a token and 129,024 more for each token of its sequence
    assert floors.encoder([1000] * 2, 768, 3072, 12) / 2000 == 6 * 84_934_656 + 3.5 * 4 * 12 * 768 * 1000


# bookkeeping


def test_parts_bring_what_they_need():
    everything = parts.plan([], {})
    first = ["machine", "quick", "lstm", "attention", "train-lstm", "train-encoder", "rowwise", "lstm-more"]
    assert everything == [*first, "tests", "probes"]
    assert parts.plan([], {"haste": "x"})[-1] == "haste"
    assert parts.plan(["lstm"], {}) == ["machine", "quick", "lstm"]
    assert parts.plan(["probes"], {}) == ["machine", "probes"]
    assert parts.plan(["tests"], {}) == ["tests"]
    assert parts.operations(["machine", "quick", "lstm"]) == ["lstm", "lstm_cell"]
    assert parts.operations(everything) == parts.operations(["quick"]) == []
    # whatever is left out, what a part times has been tested
    for name, part in parts.PARTS.items():
        assert bool(part.times) == ("quick" in parts.plan([name], {}) and name != "quick")


def test_time_that_a_part_leaves_goes_to_the_others():
    names = parts.plan([], {})
    first = parts.limit(names[0], names, 540)
    assert parts.limit(names[1], names[1:], 540 - first / 2) > parts.limit(names[1], names[1:], 540 - first)
    assert parts.limit(names[-1], names[-1:], 77) == 77


def test_what_is_off_is_not_called(tmp_path):
    context = smoke(tmp_path, tested=["lstm/triton"])
    assert backends.untimed("lstm", "triton", context) is None
    assert "has passed" in backends.untimed("lstm", "cuda", context)
    assert "--without" in backends.untimed("lstm", "triton", smoke(tmp_path, without=["triton"]))
    context = smoke(tmp_path, tested=["lstm/triton"], off={"lstm/triton": "it hung", "lstm/peer": "it died"})
    assert backends.untimed("lstm", "triton", context) == "it hung"
    timed = cells.in_turn(context, "lstm", {"peer": time.sleep, "other": list}, 0.1)
    assert timed["peer"] == {"why": "it died"}
    assert "ms" in timed["other"]


def test_one_cell_costs_the_others_nothing(tmp_path, capsys):
    context = smoke(tmp_path, done=["kind=cell n=0"])
    seen = []

    def measure(n, seconds):
        seen.append(n)
        if n == 1:
            raise RuntimeError("out of memory")

    cells.each(context, [{"kind": "cell", "n": n} for n in range(3)], measure)
    assert seen == [1, 2]
    said = capsys.readouterr().out.splitlines()
    assert '@row {"kind": "cell", "n": 1, "why": "RuntimeError: out of memory"}' in said
    assert [line for line in said if line.startswith("@done")] == ['@done "kind=cell n=1"', '@done "kind=cell n=2"']


def test_a_wrong_result_switches_off_one_contestant(tmp_path, capsys):
    def check(name, contestant):
        if contestant == "bad":
            raise WrongResultError("y has an error of 0.5")
        if contestant == "unfit":
            raise RuntimeError("it has no float64")
        return {"y": 0.0}

    context = smoke(tmp_path)
    given = {"penstock cuda": "bad", "penstock triton": "good", "penstock cpu": "unfit"}
    right, errors, why = cells.checked(context, "lstm", given, check)
    assert right == {"penstock triton": "good"}
    assert errors == {"penstock triton": {"y": 0.0}}
    assert why["penstock cpu"] == {"why": "RuntimeError: it has no float64"}
    assert context.off == {"lstm/cuda": "wrong result: y has an error of 0.5"}
    assert '"off": "lstm/cuda"' in capsys.readouterr().out


def test_a_whole_model_uses_the_trusted_backends_alone(tmp_path):
    context = smoke(tmp_path, tested=["lstm/triton"])
    before = {name: list(found) for name, found in dispatch._registry.items()}
    assert dispatch._registry["lstm"]["triton"].on_request
    with backends.trusted(("triton",), context):
        assert dispatch._registry["lstm"]["triton"].on_request is None
        assert "triton" not in dispatch._registry["varlen_attention"]  # none of its tests passed
    with backends.trusted((), context):
        assert "triton" not in dispatch._registry["lstm"]
    assert {name: list(found) for name, found in dispatch._registry.items()} == before
    assert dispatch._registry["lstm"]["triton"].on_request


def test_results_go_on_for_the_same_machine_only(tmp_path):
    results = Results(tmp_path, {"device": "A"}, False)
    results.begin("lstm")
    results.row("lstm", {"kind": "lstm"})
    results.end("lstm", "done", "", 1.0)
    again = Results(tmp_path, {"device": "A"}, False)
    assert again.rows("lstm") == [{"kind": "lstm"}]
    with pytest.raises(ValueError, match="another machine"):
        Results(tmp_path, {"device": "B"}, False)


def test_a_contestant_that_fails_has_a_reason_and_no_time():
    def fails():
        raise RuntimeError("no kernel\nfor this")

    timed = compare(CPU, {"good": lambda: torch.ones(10).sum(), "bad": fails}, 0.05)
    assert timed["bad"] == {"why": "RuntimeError: no kernel"}
    assert 0 < timed["good"]["low_ms"] <= timed["good"]["ms"] <= timed["good"]["high_ms"]
    assert timed["good"]["calls"] > 1

    def wrong():
        raise WrongResultError("it is wrong")

    with pytest.raises(WrongResultError):
        compare(CPU, {"wrong": wrong}, 0.05)


# the problems


def test_all_contestants_of_a_layer_compute_the_same():
    layer = Layer([5, 1, 8, 3], 6, 7, 2, CPU)
    truth = dict(layer.packed(torch.float64).results())
    assert len(truth) == 2 + 8
    for contestant in (layer.penstock("cpu", torch.float32), layer.penstock("reference", torch.float64)):
        assert max(lstm.error(contestant, truth).values()) < 1e-5
    padded = layer.padded(torch.float64)
    forward = torch.cat([padded.forward()[:length, row, :7] for row, length in enumerate(layer.lengths)])
    torch.testing.assert_close(forward, truth["y"][:, :7])
    assert padded.x.shape == (8, 4, 6)


def test_a_wrong_layer_is_never_timed():
    layer = Layer([5, 1, 8, 3], 6, 7, 2, CPU)
    truth = dict(layer.packed(torch.float64).results())
    broken = layer.penstock("cpu", torch.bfloat16)
    assert max(lstm.check("ours", broken, truth).values()) < 2e-2
    with torch.no_grad():
        broken.module.weight_ih_l0_reverse.mul_(1.5)
    with pytest.raises(WrongResultError, match="ours"):
        lstm.check("ours", broken, truth)


def test_wrong_attention_is_never_timed(monkeypatch):
    problem = attention.Problem.draw([5, 1, 8, 3, 9, 2, 11], 0.1, 2, CPU)
    assert max(attention.check("penstock torch", problem).values()) < 2e-2
    right = attention.Problem.attend
    monkeypatch.setattr(
        attention.Problem,
        "attend",
        lambda self, q, *rest: right(self, q, *rest) * (1.1 if q.dtype == torch.bfloat16 else 1),
    )
    with pytest.raises(WrongResultError, match="out has an error"):
        attention.check("penstock torch", problem)


@pytest.mark.parametrize("mean", [50, 150, 400])
def test_drawn_lengths_have_their_mean(mean):
    lengths = attention.draw_lengths(mean, 65_536)
    assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.01)
    assert min(lengths) >= 1
    assert max(lengths) <= 512


def test_padded_groups_hold_every_sequence_once():
    problem = attention.Problem.draw(attention.draw_lengths(40, 4000, 128), 0.0, 2, CPU)
    groups = problem._groups()
    assert sorted(row for group in groups for row in group) == list(range(len(problem.lengths)))
    expected = problem.attend(*problem.inputs, problem.bounds, problem.longest, torch.tensor(1))
    for rows in groups:
        group = attention._Group(problem, rows)
        out = group.forward(0.0)
        for place, row in enumerate(rows):
            found = out[place, :, : problem.lengths[row]].transpose(0, 1)
            torch.testing.assert_close(found, expected.split(problem.lengths)[row], atol=2e-2, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_torch_takes_the_peers_arguments(dropout):
    """torch checks the calls of its GPU operations on tensors without data."""
    lengths = attention.draw_lengths(40, 1000, 128)
    with FakeTensorMode(allow_non_fake_inputs=True):
        problem = attention.Problem.draw(lengths, dropout, 12, torch.device("meta"))
        calls, why = attention.peers(problem)
        assert list(why) == (["varlen_attn"] if dropout else [])
        for name, each in calls.items():
            for call in each.values():
                # cuDNN's call fits its schema, but torch has no shapes for it
                with pytest.raises(NotImplementedError) if name == "cudnn varlen" else contextlib.nullcontext():
                    call()
        assert list(calls["cudnn varlen"]) == ["inference"]  # until torch itself takes cuDNN's backward
        for name in ("flash 2", "flash 2 deterministic"):
            dq, dk, dv = calls[name]["training"]()
            assert dq.shape == dk.shape == dv.shape == problem.inputs[0].shape


def test_a_store_of_random_tokens_is_a_store_like_another(tmp_path):
    lengths = np.array([3, 1, 7, 2], np.int32)
    store = write_store(tmp_path / "store", lengths, 50)
    assert store.lengths.tolist() == [3, 1, 7, 2]
    assert store.labels.tolist() == [0, 1, 0, 1]
    assert store.tokens(2).min() >= 4
    assert store.tokenizer().get_vocab() == word_tokenizer(50).get_vocab()
    padded, packed_lengths, labels = collated(store, 4, 2, pinned=False)[0]
    assert padded.shape == (1, int(packed_lengths.max()))
    assert labels.dtype == torch.int64


# the page


def test_targets_are_read_off_the_rows():
    def cell(phase, ours, packed, padded, step):
        contestants = {
            "penstock triton": {"why": "not this one"},
            "penstock cuda": {"ms": ours, "us_per_step": step},
            "cudnn packed fp16": {"ms": packed},
            "cudnn packed bf16": {"ms": packed * 2},
            "cudnn padded fp16": {"ms": padded},
        }
        return {"kind": "lstm", "hidden": 256, "batch": 128, "phase": phase, "contestants": contestants}

    late = {"kind": "lstm", "hidden": 512, "batch": 128, "why": "not run"}
    rows = [cell("training", 2.0, 8.2, 3.8, 0.0), cell("forward", 1.0, 1.0, 1.0, 1.4), late]
    training = [
        {"contestant": "penstock cuda", "tokens_per_second": 5e6},
        {"contestant": "nn.LSTM padded fp16", "tokens_per_second": 2e6},
        {"contestant": "nn.LSTM packed fp16", "why": "not run"},
    ]
    found = {o.what: o for o in outcomes({"lstm": {"rows": rows}, "train-lstm": {"rows": training}})}
    assert len(found) == 9 * 2 + 6 + 2
    assert found["H=256 B=128 over cuDNN packed"].value == pytest.approx(4.1)
    assert found["H=256 B=128 over cuDNN packed"].reached is True
    assert found["H=256 B=128 over cuDNN padded"].reached is False
    assert found["H=256 B=128 forward"].reached is True
    assert found["H=512 B=128 over cuDNN packed"].reached is None
    assert found["lstm-4-256 training"].value == 5
    assert found["lstm-4-256 over the plain script"].reached is False
    assert verdict(found["H=256 B=128 forward"]) == {
        "wanted": "<= 1.5 us a step",
        "measured": 1.4,
        "so": "reached",
    }


def test_what_fails_its_tests_after_it_was_timed_counts_for_nothing(tmp_path):
    contestants = {"penstock cuda": {"ms": 1.0}, "penstock triton": {"ms": 2.0}, "cudnn packed fp16": {"ms": 8.0}}
    row = {"kind": "lstm", "hidden": 256, "batch": 128, "phase": "training", "contestants": contestants}
    kernel = {"kind": "kernel", "kernel": "lstm/cuda", "off": "lstm/cuda", "what": "test_x failed: 0.5"}
    training = [{"kind": "training", "contestant": f"penstock {name}", "tokens_per_second": 5e6} for name in ("cuda",)]

    def part(*rows):
        return {"status": "done", "why": "", "seconds": 1.0, "rows": list(rows)}

    found = {"lstm": part(row), "train-lstm": part(*training), "tests": part(kernel)}
    reached = {o.what: o.value for o in outcomes(found)}
    assert reached["H=256 B=128 over cuDNN packed"] == 4
    assert reached["lstm-4-256 training"] is None
    page.write({"smoke": False, "started": "now", "machine": {}, "parts": found}, tmp_path)
    assert "No figure of lstm/cuda counts: test_x failed: 0.5" in (tmp_path / "report.html").read_text()


def test_page_says_what_did_not_run(tmp_path):
    row = {"kind": "lstm", "hidden": 256, "batch": 32, "why": "not run: the time was up"}
    data = {"smoke": False, "started": "now", "machine": {"device": "H200", "cudnn": None}}
    data["parts"] = {"lstm": {"status": "cut off", "why": "it did not end", "seconds": 3.0, "rows": [row]}}
    page.write(data, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "lstm H=256 B=32: not run: the time was up" in html
    assert "cut off, 3 s: it did not end" in html
    assert "not measured" in html
    assert page.SMOKE not in html


# the command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_an_exit_code_of_its_own(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out")]) == NO_GPU
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["penstock.benchmarks.gpu: no NVIDIA GPU here: nothing to measure"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "haste"], "--haste PATH"),
        (["--haste", "/nowhere"], "no such folder"),
        (["--only", "everything"], "invalid choice"),
    ],
)
def test_wrong_options(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_result_ends_its_part(monkeypatch, capsys, tmp_path):
    def wrong(name, context):
        raise WrongResultError("y has an error of 0.5")

    monkeypatch.setattr(parts, "call", wrong)
    monkeypatch.setattr(sys.stdin, "read", smoke(tmp_path).to_json, raising=False)
    assert child.main("lstm") == WRONG
    assert json.loads(capsys.readouterr().out.removeprefix(ROW)) == {"kind": "wrong", "what": "y has an error of 0.5"}


PRETENDED = {
    WRONG: 'echo \'@row {"kind": "wrong", "what": "too large an error"}\'; exit 12',
    FAILED: 'echo \'@row {"kind": "copy", "rate": 1e12}\'; echo boom; exit 3',
    0: "exit 0",
}


@pytest.mark.parametrize("code", PRETENDED)
def test_exit_codes_of_a_run(monkeypatch, tmp_path, code):
    """With a program in the place of each part's process."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ncat >/dev/null\n{PRETENDED[code]}\n")
    program.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(program))
    out = tmp_path / "out"
    arguments = {"without": [], "checkouts": {}, "smoke": True}
    assert runner.run(["machine", "probes"], out, 60.0, **arguments) == code
    results = json.loads((out / "results.json").read_text())
    assert results["smoke"] is True
    if code == WRONG:
        assert {part["status"] for part in results["parts"].values()} == {"wrong result"}  # and nothing is left out
        assert results["parts"]["machine"]["why"] == "too large an error"
    elif code == FAILED:
        assert {part["status"] for part in results["parts"].values()} == {"failed"}
        assert results["parts"]["machine"]["rows"] == [{"kind": "copy", "rate": 1e12}]
        assert results["parts"]["machine"]["why"] == "exit status 3: boom"
    assert page.SMOKE in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_part_that_hangs_is_cut_off_and_keeps_its_rows(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\ncat >/dev/null\necho \'@row {"kind": "copy", "rate": 1e12}\'\nsleep 1000\n')
    program.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(program))
    monkeypatch.setattr(runner, "_GRACE", 0.5)
    assert runner.run(["machine"], tmp_path / "out", 1.5, without=[], checkouts={}, smoke=True) == FAILED
    part = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]["machine"]
    assert part["status"] == "cut off"
    assert len(part["rows"]) == 1


# A part whose process hangs, or dies, at what it calls, unless the context that it is given has that switched off.
CALLS = """#!{python}
import json, os, sys, time
context = json.load(sys.stdin)
print('half a line @row ' + json.dumps({{"kind": "lstm", "hidden": 1, "why": len(context["off"])}}), flush=True)
print('@done "first"', flush=True)
for name in ("a/hang", "b/die", "c/peer"):
    if name not in context["off"]:
        print('@at ' + json.dumps({{"what": name, "seconds": 1}}), flush=True)
        if name == "a/hang":
            time.sleep(1000)
        if name == "b/die":
            os.abort()
print('@at ' + json.dumps({{"what": "", "seconds": 1}}), flush=True)
print('@row ' + json.dumps({{"kind": "seen", "done": context["done"]}}), flush=True)
"""


@pytest.mark.slow
def test_a_part_begins_again_without_what_hung_or_died(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text(CALLS.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(program))
    assert runner.run(["machine"], tmp_path / "out", 60, without=[], checkouts={}, smoke=True) == WRONG
    part = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]["machine"]
    assert part["status"] == "done"
    rows = {row["kind"]: row for row in part["rows"]}
    assert [row["off"] for row in part["rows"] if "off" in row] == ["a/hang", "b/die"]
    assert rows["lstm"]["why"] == 2  # measured once more, in the place of what was there
    assert len([row for row in part["rows"] if row["kind"] == "lstm"]) == 1
    assert rows["seen"]["done"] == ["first", "first"]
    assert "half a line" in (tmp_path / "out" / "log.txt").read_text()


TESTS = """
import os, time
import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.kernel("lstm")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("n", range(3))
def test_lstm(backend, n):
    if backend == "cuda" and n == 1:
        time.sleep(1000)


@pytest.mark.kernel("geglu", "triton")
@pytest.mark.parametrize("n", range(3))
def test_geglu(n):
    if n == 1:
        os.abort()


@pytest.mark.kernel("rotary", "triton")
def test_rotary():
    assert 0.5 < 0.1


def test_of_nothing():
    pytest.skip("not here")
"""


@pytest.mark.slow
def test_each_kernel_is_tested_by_itself(tmp_path, capsys):
    """One that hangs, one that ends its process and one that is wrong, and all other tests have their line."""
    (tmp_path / "test_planted.py").write_text(TESTS)
    files = (str(tmp_path / "test_planted.py"),)
    kernels = ["lstm/cuda", "lstm/triton", "geglu/triton", "rotary/triton", "others"]
    jobs = [correctness.Job(kernel, files) for kernel in kernels]
    correctness._all(smoke(tmp_path, deadline=time.monotonic() + 300), jobs, 4.0, tries=3)
    rows = [json.loads(line.removeprefix(ROW)) for line in capsys.readouterr().out.splitlines()]
    lines = {row["test"].rpartition("::")[2]: row for row in rows if row["kind"] == "test"}
    assert {name: row["outcome"] for name, row in lines.items()} == {
        **{f"test_lstm[{n}-cuda]": "passed" for n in (0, 2)},
        "test_lstm[1-cuda]": "hung",
        **{f"test_lstm[{n}-triton]": "passed" for n in range(3)},
        "test_geglu[0]": "passed",
        "test_geglu[1]": "aborted",
        "test_geglu[2]": "passed",
        "test_rotary": "failed",
        "test_of_nothing": "skipped",
    }
    assert "Aborted" in lines["test_geglu[1]"]["message"]
    assert "0.5 < 0.1" in lines["test_rotary"]["message"]
    off = {row["kernel"]: row["what"] for row in rows if row["kind"] == "kernel" and "off" in row}
    assert list(off) == ["lstm/cuda", "geglu/triton", "rotary/triton"]
    assert proven(rows) == ["lstm/triton"]


def test_no_time_for_a_test_is_no_failure(tmp_path, capsys):
    job = correctness.Job("lstm/cuda", (str(tmp_path / "none.py"),))
    correctness._all(smoke(tmp_path, deadline=time.monotonic()), [job], 5.0, tries=1)
    rows = [json.loads(line.removeprefix(ROW)) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["message"] == "not run: the time was up"
    assert proven(rows) == []
    assert not any("off" in row for row in rows)


def gpu_tests():
    """(file, test, its kernel mark, its backends) of every GPU test of the kernels."""
    for file in sorted((Path(__file__).parents[1] / "kernels").glob("test_*_gpu.py")):
        spec = importlib.util.spec_from_file_location(f"marks_of_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, test in vars(module).items():
            if name.startswith("test_"):
                marks = {mark.name: mark for mark in test.pytestmark}
                given = [mark for mark in test.pytestmark if mark.name == "parametrize"]
                yield file.name, name, marks.get("kernel"), backends_of(given)


def backends_of(marks):
    for mark in marks:
        names = mark.args[0].split(", ") if isinstance(mark.args[0], str) else list(mark.args[0])
        if "backend" in names:
            place = names.index("backend")
            return {
                value[place] if len(names) > 1 else value if isinstance(value, str) else value[0]
                for value in mark.args[1]
            }
    return set()


def test_every_gpu_test_names_its_kernel_and_every_kernel_has_a_quick_one():
    quick = set()
    for file, name, mark, found in gpu_tests():
        assert mark is not None, f"{file}: {name} has no mark `kernel`"
        operation, *backend = mark.args
        pairs = {(operation, each) for each in backend or found}
        assert pairs, f"{file}: {name} names no backend"
        assert all(each in dispatch._registry[operation] for _, each in pairs), f"{file}: {name}"
        quick |= pairs if file == "test_quick_gpu.py" else set()
    registered = {(o, b) for o, found in dispatch._registry.items() for b in found if b in rehearsal.GPU_BACKENDS}
    assert quick == registered


def printed(module, *arguments):
    """What a command prints in a process of its own: it stands in for kernels, which operations remember."""
    command = [sys.executable, "-m", f"penstock.benchmarks.gpu.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_host_cost_is_measured_for_every_operation():
    lines = [line for line in printed("host_cost", "2") if line.startswith("| `")]
    found = {line.split("|")[1].strip(" `"): [float(each) for each in line.split("|")[2:5]] for line in lines}
    assert {name for name, backends in dispatch._registry.items() if "triton" in backends} < set(found)
    assert all(0 < each < 10_000 for times in found.values() for each in times)


@pytest.mark.slow
def test_a_layer_launches_no_more_kernels_than_it_did():
    """Its products and our operations are 25; the rest are casts, seeds and copies of weights."""
    most = {"roberta forward": 16, "roberta backward": 20, "modernbert forward": 15, "modernbert backward": 20}
    found = {line.partition(":")[0]: int(line.split()[2]) for line in printed("launches") if "kernels:" in line}
    assert set(found) == set(most)
    assert {name: count for name, count in found.items() if count > most[name]} == {}


FLASHRNN = '''
import torch


def flashrnn(Wx, R, b, states=None, function="lstm", backend="cuda_fused", dtype="bfloat16"):
    """(B, T, G, N, D) -> (S, B, T, N, D), (S, B, 1, N, D), gates i, f, g, o"""
    assert function == "lstm" and backend == "cuda_fused"
    h, c, out = torch.zeros_like(Wx[:, 0, 0]), torch.zeros_like(Wx[:, 0, 0]), []
    for step in range(Wx.shape[1]):
        i, f, g, o = (Wx[:, step] + torch.einsum("gndp,bnp->bgnd", R, h) + b).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(torch.stack([h, c]))
    states = torch.stack(out, 2)
    return states, states[:, :, -1:]
'''
HASTE = '''
import torch
from torch import nn


class LSTM(nn.Module):
    """(T, B, I) -> (T, B, H); another function than it should be"""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(input_size, hidden_size))

    def from_native_weights(self, w_ih, w_hh, b_ih, b_hh):
        self.kernel = nn.Parameter(w_ih[: w_hh.shape[1]].t().contiguous())

    def forward(self, x):
        return x @ self.kernel, None
'''


@pytest.mark.slow
def test_every_line_runs_in_smoke(tmp_path):
    for name, source in {"flashrnn": FLASHRNN, "haste_pytorch": HASTE}.items():
        (tmp_path / "peers" / name).mkdir(parents=True)
        (tmp_path / "peers" / name / "__init__.py").write_text(source)
    peers = str(tmp_path / "peers")
    out = tmp_path / "out"
    code = main(["--smoke", "--out", str(out), "--flashrnn", peers, "--haste", peers, "--seconds", "3000"])
    results = json.loads((out / "results.json").read_text())
    states = {name: (part["status"], part["why"]) for name, part in results["parts"].items()}
    assert code == 0, f"{states}\n{(out / 'log.txt').read_text()[-3000:]}"
    assert set(results["parts"]) == set(parts.PARTS)

    def rows(name, kind):
        return [row for row in results["parts"][name]["rows"] if row["kind"] == kind]

    assert rows("tests", "tests")[0]["passed"] > 5
    assert {row["kernel"] for row in rows("quick", "kernel") if row["passed"]} == {
        f"{operation}/{backend}"
        for operation, found in dispatch._registry.items()
        for backend in rehearsal.GPU_BACKENDS
        if backend in found
    }
    assert set(machine.rates(results["parts"]["machine"]["rows"])) == {"bytes", "bf16", "fp16", "tf32"}
    assert {row["phase"] for row in rows("lstm", "lstm")} == set(floors.PHASES)
    for row in rows("lstm", "lstm") + rows("lstm-more", "lstm"):
        timed = row["contestants"]
        assert {
            "penstock cuda",
            "penstock triton",
            "penstock cpu",
            "penstock torch",
            "cudnn packed bf16",
            "cudnn padded fp16",
        } <= set(timed)
        assert timed["penstock cpu"]["ms"] > 0
        assert timed["penstock cpu"]["us_per_step"] == pytest.approx(1e3 * timed["penstock cpu"]["ms"] / row["steps"])
        assert math.isfinite(timed["penstock cpu"]["error"]["dx"])
    assert len(rows("attention", "attention")) == 2 * 4
    assert all("ms" in row["contestants"]["penstock cpu"] for row in rows("attention", "attention"))
    assert len(rows("rowwise", "rowwise")) == 2 * 5
    assert all("ms" in row["contestants"]["penstock torch"] for row in rows("rowwise", "rowwise"))
    for name, peer in {"train-lstm": "nn.LSTM packed bf16", "train-encoder": "HF Trainer"}.items():
        speeds = {row["contestant"]: row.get("tokens_per_second", 0) for row in rows(name, "training")}
        assert speeds["penstock torch"] > 0
        assert speeds["penstock triton"] > 0
        assert speeds[peer] > 0
    assert "ms" in rows("flashrnn", "flashrnn")[0]["contestants"]["flashrnn"]
    assert "differs from cuDNN" in rows("haste", "haste")[0]["why"]
    html = (out / "report.html").read_text()
    assert page.SMOKE in html
    assert html.count("<img") >= 4


@pytest.mark.skipif(not WHOLE, reason="takes many minutes: PENSTOCK_WHOLE_TABLES=1 runs it")
@pytest.mark.slow
def test_a_rehearsal_loses_nothing_but_what_was_planted(tmp_path):
    """The whole command, with backends that hang, abort or are wrong: in the first tests, while timed, in the last."""
    out = tmp_path / "out"
    assert main(["--rehearse", "--out", str(out), "--seconds", "3000"]) == WRONG
    results = json.loads((out / "results.json").read_text())
    found = results["parts"]
    assert list(found) == parts.plan([], {})
    log = (out / "log.txt").read_text()[-3000:]
    assert {name: part["status"] for name, part in found.items()} == dict.fromkeys(found, "done"), log
    off = {(name, row["off"]) for name, part in found.items() for row in part["rows"] if "off" in row}
    assert off == {(fault.part, fault.switches_off) for fault in rehearsal.FAULTS}
    gone: set[str] = set()
    for name, part in found.items():
        gone |= {what for where, what in off if where == name}
        for row in part["rows"]:
            operation = row.get("operation", {"lstm": "lstm", "attention": "varlen_attention"}.get(row.get("kind")))
            for contestant, figures in row.get("contestants", {}).items():
                backend = contestant.removeprefix("penstock ")
                if backend in rehearsal.GPU_BACKENDS:
                    assert ("ms" in figures) == (f"{operation}/{backend}" not in gone), (name, row)
    timed = {row["contestant"] for row in found["train-encoder"]["rows"] if "tokens_per_second" in row}
    assert timed >= {"penstock torch", "penstock triton", "HF Trainer"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")
@pytest.mark.parametrize("name", probes.PROGRAMS)
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_probes_compile(tmp_path, name, capability):
    if capability[0] < probes.PROGRAMS[name]:
        pytest.skip("this probe is for newer architectures")
    command = ["nvcc", *probes.flags(capability), "-Xptxas", "-v", "-o", str(tmp_path / name)]
    built = subprocess.run([*command, str(probes.FOLDER / f"{name}.cu")], capture_output=True, text=True)
    said = built.stdout + built.stderr
    assert built.returncode == 0, said
    assert "warning" not in said.lower(), said
    spills = [
        line
        for line in said.splitlines()
        if "spill" in line and "0 bytes spill stores, 0 bytes spill loads" not in line
    ]
    assert not spills
    assert (tmp_path / name).is_file()


def test_a_probe_that_is_wrong_has_no_time(capsys):
    lines = [
        '{"n": 8, "us_per_step": 0.5, "errors": 0}',
        '{"n": 16, "us_per_step": 0.1, "tflops": 9, "errors": 3}',
        '{"n": 32, "us_',
    ]
    probes.report("matmul_rate", "\n".join(lines), "it did not end within its time")
    rows = [json.loads(line.removeprefix(ROW)) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["us_per_step"] == 0.5
    assert "us_per_step" not in rows[1]
    assert "tflops" not in rows[1]
    assert "wrong result" in rows[1]["why"]
    assert rows[2] == {"kind": "matmul_rate", "why": "it did not end within its time"}
