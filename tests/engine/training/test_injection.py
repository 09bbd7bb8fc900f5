"""Every file of a run's folder, damaged in every way, read again by every command: named, or without effect.

Named: one line on stderr, an exit code of its own, no traceback, and the folder can still be resumed from the
checkpoint before it where the damage lies in the last one. Without effect: the same result to the last bit.
"""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from command_line import penstock
from earlier_runs import as_before_checksums
from safetensors.torch import load_file, save_file
from sampling import sampled
from stopping import stop_at
from subtested import as_subtests

from penstock.engine.checked import SEAL_NAME, read_seal, seal, with_checksum
from penstock.engine.training.train import train

CLOCK = ("seconds", "tokens_per_second", "examples_per_second", "data_wait", "mfu", "time")
STATE = "training_state.pt"


def flipped(share: float) -> Callable[[Path], None]:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[min(int(share * len(content)), len(content) - 1)] ^= 1 << 2
        file.write_bytes(content)

    return flip


def truncated(size: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, size(file.stat().st_size))


def remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink()


def by_folder(file: Path) -> None:
    remove(file)
    file.mkdir()


def by_file(file: Path) -> None:
    remove(file)
    file.write_text("something else")


def lengthened(file: Path) -> None:
    with open(file, "ab") as out:
        out.write(b"\0" * 100)


CONTENT: dict[str, Callable[[Path], None]] = {
    "flip at the start": flipped(0),
    "flip in the middle": flipped(0.5),
    "flip at the end": flipped(1),
    "empty": truncated(lambda size: 0),
    "half": truncated(lambda size: size // 2),
    "one byte short": truncated(lambda size: size - 1),
    "NULs": lambda file: file.write_bytes(b"\0" * file.stat().st_size),
    "lengthened": lengthened,
}
PLACE: dict[str, Callable[[Path], None]] = {"absent": remove, "a folder": by_folder, "a file": by_file}


@dataclass(frozen=True)
class Template:
    """A stopped run and a finished one, and what commands on whole copies of them give."""

    stopped: Path
    finished: Path
    texts: Path

    def results(self, run: Path) -> dict[str, bytes | list]:
        """What a run that was brought to its end has come to."""
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        # where checkpoints were written depends on where the run was stopped
        lines = [line for line in lines if line["split"] != "checkpoint"]
        result = json.loads((run / "run.json").read_text())["result"]
        return {
            **{name: (run / name / "model.safetensors").read_bytes() for name in ("best", "last")},
            "own": (run / "model.safetensors").read_bytes(),
            "metrics": [{key: value for key, value in line.items() if key not in CLOCK} for line in lines],
            "result": [result[key] for key in ("validation", "steps", "examples", "best_step")],
        }


@pytest.fixture(scope="module")
def template(texts, store, tmp_path_factory) -> Template:
    from penstock.engine.training.settings import load_settings
    from penstock.engine.training.signals import Interrupted

    folder = tmp_path_factory.mktemp("injection")
    settings = load_settings(
        None,
        [
            *(
                "model.hidden_size=8",
                "model.embedding_size=8",
                "model.embedding_dropout=0.2",
                "training.precision=fp32",
            ),
            *("data.tokens_per_batch=256", "training.learning_rate=3e-2", "training.max_steps=12"),
            *("training.evaluate_every_steps=2", "training.checkpoint_every_steps=3", "training.log_every_steps=1"),
            *("training.tensorboard=false", "training.patience=0"),
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(Interrupted):
            train(settings, store, folder / "stopped", progress="none")
    shutil.copytree(folder / "stopped", folder / "finished", symlinks=True)
    train(settings, store, folder / "finished", progress="none")
    source = folder / "texts.csv"
    source.write_text("text\na lovely film\nthe dull plot was awful\nusual music\n")
    return Template(folder / "stopped", folder / "finished", source)


@pytest.fixture
def whole(template) -> dict:
    return template.results(template.finished)


def files_of(run: Path) -> list[str]:
    """Every file, link and folder, by its path in the run; a model's files by where the link leads."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def role(run: Path, name: str) -> str:
    """The same names whatever the steps' numbers are."""
    for link in ("last", "best"):
        name = name.replace(os.readlink(run / link), f"<{link}>")
    return name


def damages(run: Path, name: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    if (run / name).is_file() and (run / name).stat().st_size and not (run / name).is_symlink():
        yield from CONTENT.items()
    yield from PLACE.items()


def is_read(what: str) -> bool:
    """Damage that a command comes by; the line's end behind a JSON file's content is no part of that."""
    return what.startswith(("<last>/", "<best>/", "run.json", "config.yaml")) and "json, one byte short" not in what


def assert_named(finished, what: str) -> None:
    lines = finished.stderr.strip().splitlines()
    assert "Traceback" not in finished.stderr, f"{what}:\n{finished.stderr}"
    assert finished.returncode in range(3, 11), f"{what}: exit code {finished.returncode}\n{finished.stderr}"
    assert lines[-1].startswith("penstock: "), f"{what}: {finished.stderr}"
    assert sum(line.startswith("penstock: ") for line in lines) == 1, what


def resumed_or_named(template: Template, run: Path, whole: dict, what: str, *options: str) -> bool:
    """Whether the damage was without effect."""
    finished = penstock("train", "--out", run, *options)
    if finished.returncode:
        assert_named(finished, what)
        return False
    found = template.results(run)
    if "metrics.jsonl is missing: it begins again" in finished.stderr:
        found.pop("metrics")
    for key in found:
        assert found[key] == whole[key], f"{what}: other {key}"
    return True


@pytest.mark.slow
@pytest.mark.parametrize("share", range(4))
def test_every_damage_to_a_stopped_run_is_named_or_harmless(template, whole, tmp_path, share):
    names = files_of(template.stopped)
    assert {"run.json", "config.yaml", "metrics.jsonl", "last", "best", "checkpoints"} <= set(names)
    harmless = set()
    count = 0
    cases = [(name, *case) for name in names for case in damages(template.stopped, name)]
    for name, damage, inflict in sampled(cases, 2)[share::4]:
        what = f"{role(template.stopped, name)}, {damage}"
        run = tmp_path / f"run-{count}"
        count += 1
        shutil.copytree(template.stopped, run, symlinks=True)
        inflict(run / name)
        before = {file: (run / file).read_bytes() for file in files_of(run) if (run / file).is_file()}
        if resumed_or_named(template, run, whole, what):
            harmless.add(what)
        else:
            after = {file: (run / file).read_bytes() for file in before if (run / file).is_file()}
            assert after == before, f"{what}: a refusal changed something"
            in_last = f"{name}/".startswith(os.readlink(template.stopped / "last") + "/")
            if in_last or (name == "last" and damage != "a folder"):
                assert resumed_or_named(template, run, whole, f"{what}, then previous", "--resume=previous"), what
        shutil.rmtree(run)
    assert count > 15
    # what decides nothing; the checkpoint before the last one is not read as long as that is whole
    for what in harmless:
        assert not is_read(what), f"{what}: no effect, and not a word"


@pytest.mark.slow
def test_every_damage_to_a_finished_run_is_named_or_harmless_to_predictions(template, tmp_path):
    def predicted(run: Path):
        return penstock("predict", run, template.texts, "--out", "-")

    expected = predicted(template.finished)
    assert expected.returncode == 0, expected.stderr
    cases = [(name, *case) for name in files_of(template.finished) for case in damages(template.finished, name)]
    for count, (name, damage, inflict) in enumerate(sampled(cases, 2)):
        what = f"{role(template.finished, name)}, {damage}"
        run = tmp_path / f"run-{count}"
        shutil.copytree(template.finished, run, symlinks=True)
        inflict(run / name)
        finished = predicted(run)
        if finished.returncode:
            assert_named(finished, what)
        else:
            assert finished.raw == expected.raw, f"{what}: other predictions"
            assert not is_read(what) or what.startswith("<last>") or STATE in what, what
        shutil.rmtree(run)


def test_the_models_in_the_runs_own_folder_are_checked(template, tmp_path):
    from penstock.engine import load_model
    from penstock.engine.errors import ModelError

    for name in ("config.json", "model.safetensors", "tokenizer.json", SEAL_NAME):
        run = tmp_path / name
        shutil.copytree(template.finished, run, symlinks=True)
        load_model(run)
        flipped(0.5)(run / name)
        with pytest.raises(ModelError, match=name):
            load_model(run)


# Damage that keeps the checksums right: what somebody else's file may hold.


def edited_state(edit: Callable[[dict], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = torch.load(folder / STATE, weights_only=True)
        edit(state)
        torch.save(state, folder / STATE)

    return change


def edited_weights(edit: Callable[[dict], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def moments(state: dict, number: int = 0) -> dict:
    return state["stepper"]["optimizer"]["state"][number]


def put(mapping: dict, key, value) -> None:
    mapping[key] = value


def first(weights: dict) -> str:
    return min(weights)


TENSORS: dict[str, Callable[[Path], None]] = {}
for _key in ("exp_avg", "exp_avg_sq", "step"):
    for _what, _other in {
        "longer": lambda tensor: torch.zeros(tensor.numel() + 1000),
        "shorter": lambda tensor: tensor.flatten()[:0],
        "transposed": lambda tensor: tensor.flatten()[None].T.contiguous()[None],
        "float64": lambda tensor: tensor.double(),
        "float16": lambda tensor: tensor.half(),
        "int64": lambda tensor: tensor.long(),
        "a number": lambda tensor: 1.0,
        "sparse": lambda tensor: tensor.reshape(-1).to_sparse(),
    }.items():
        TENSORS[f"{_key} {_what}"] = edited_state(
            lambda state, key=_key, other=_other: put(moments(state), key, other(moments(state)[key]))
        )
    TENSORS[f"{_key} missing"] = edited_state(lambda state, key=_key: moments(state).pop(key))
TENSORS |= {
    "a tensor too many": edited_state(lambda state: put(moments(state), "max_exp_avg_sq", torch.zeros(3))),
    "a parameter missing": edited_state(lambda state: state["stepper"]["optimizer"]["state"].pop(0)),
    "a parameter too many": edited_state(lambda state: put(state["stepper"]["optimizer"]["state"], 99, {})),
    "parameters by name": edited_state(
        lambda state: put(state["stepper"]["optimizer"]["state"], "embeddings.weight", moments(state))
    ),
    "other names": edited_state(lambda state: state["stepper"]["parameters"].reverse()),
    "fewer names": edited_state(lambda state: state["stepper"]["parameters"].pop()),
    "no groups": edited_state(lambda state: state["stepper"]["optimizer"]["param_groups"].clear()),
    "a group less": edited_state(lambda state: state["stepper"]["optimizer"]["param_groups"].pop()),
    "an order of its own": edited_state(
        lambda state: state["stepper"]["optimizer"]["param_groups"][0]["params"].reverse()
    ),
    "scaling": edited_state(lambda state: put(state["stepper"], "scaler", {"scale": 1.0})),
    "no scaler": edited_state(lambda state: state["stepper"].pop("scaler")),
    "overflows": edited_state(lambda state: put(state["stepper"], "overflows", "many")),
    "no stepper": edited_state(lambda state: state.pop("stepper")),
    "a list for a stepper": edited_state(lambda state: put(state, "stepper", [])),
    "no counters": edited_state(lambda state: state.pop("counters")),
    "a counter more": edited_state(lambda state: put(state["counters"], "more", 1)),
    "a negative counter": edited_state(lambda state: put(state["counters"], "step", -5)),
    "a counter of text": edited_state(lambda state: put(state["counters"], "examples", "5")),
    "what a step has to log": edited_state(lambda state: put(state["counters"], "unfinished", {"x": 1})),
    "a number to log of text": edited_state(
        lambda state: put(state["counters"], "unfinished", {"grad_norm": "1", "learning_rate": 0.1})
    ),
    "a phase": edited_state(lambda state: put(state["counters"], "time", {"sleep": 1.0})),
    "figures": edited_state(lambda state: put(state["counters"], "best", {"x": 1})),
    "no loader": edited_state(lambda state: state.pop("loader")),
    "the loader's plan": edited_state(lambda state: put(state["loader"], "plan", "another")),
    "the loader's version": edited_state(lambda state: put(state["loader"], "version", 99)),
    "the loader's place": edited_state(lambda state: put(state["loader"], "step", 10**9)),
    "empty": edited_state(lambda state: state.clear()),
    "no dictionary": lambda folder: torch.save([1], folder / STATE),
    "no archive": lambda folder: (folder / STATE).write_bytes(b"something"),
    "code": lambda folder: torch.save({"counters": print}, folder / STATE),
    "weights of another shape": edited_weights(lambda weights: put(weights, first(weights), torch.zeros(3, 3))),
    "weights in float64": edited_weights(
        lambda weights: put(weights, first(weights), weights[first(weights)].double())
    ),
    "weights in float16": edited_weights(lambda weights: put(weights, first(weights), weights[first(weights)].half())),
    "weights missing": edited_weights(lambda weights: weights.pop(first(weights))),
    "weights of another name": edited_weights(lambda weights: put(weights, "other", weights.pop(first(weights)))),
    "no weights": edited_weights(lambda weights: weights.clear()),
    "no safetensors": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
}


def config_with(**entries) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return change


TENSORS |= {
    "configuration of another model": config_with(model_type="bert"),
    "configuration of no model": config_with(model_type="none of them"),
    "configuration of another size": config_with(hidden_size=16),
    "configuration of a size of text": config_with(hidden_size="eight"),
    "configuration with other labels": config_with(id2label={"0": "x", "1": "y", "2": "z"}),
    "configuration with fewer labels": config_with(id2label={"0": "bad", "1": "fair"}, label2id={"bad": 0, "fair": 1}),
    "configuration that is a list": lambda folder: (folder / "config.json").write_text("[]"),
}


def sealed_again(folder: Path) -> None:
    kept = {key: value for key, value in read_seal(folder).items() if key not in ("format", "files")}
    seal(folder, **kept)


@as_subtests("damage", TENSORS)
def test_a_checkpoint_that_does_not_fit_the_model_is_refused(template, tmp_path, damage):
    refuses(template, tmp_path / "run", damage, lambda run: sealed_again(run / "last"))


# of parameters' names the earlier format has none
@pytest.mark.slow
@as_subtests("damage", [damage for damage in sampled(TENSORS, 2) if damage not in ("other names", "fewer names")])
def test_a_checkpoint_without_checksums_that_does_not_fit_the_model_is_refused(template, tmp_path, damage):
    refuses(template, tmp_path / "run", damage, as_before_checksums)


def refuses(template: Template, run: Path, damage: str, close: Callable[[Path], None]) -> None:
    shutil.copytree(template.stopped, run, symlinks=True)
    TENSORS[damage](run / "last")
    close(run)
    finished = penstock("train", "--out", run)
    assert_named(finished, damage)
    assert str(run) in finished.stderr or "the loader" in finished.stderr, finished.stderr


def test_what_more_weights_there_are_has_no_effect(template, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(template.stopped, run, symlinks=True)
    edited_weights(lambda weights: put(weights, "more", torch.zeros(3)))(run / "last")
    sealed_again(run / "last")
    assert resumed_or_named(template, run, whole, "more weights")


@as_subtests("content", [None, 0, 3, 99, "2", 2.5, []])
def test_another_version_of_the_format(template, tmp_path, content):
    for name, reader in (("run.json", "train"), ("run.json", "predict"), (f"last/{SEAL_NAME}", "train")):
        run = tmp_path / f"{name.replace('/', '-')}-{reader}"
        shutil.copytree(template.stopped, run, symlinks=True)
        record = json.loads((run / name).read_text())
        del record["crc32"]
        (run / name).write_text(json.dumps(with_checksum({**record, "format": content})))
        finished = penstock(
            *(("train", "--out", run) if reader == "train" else ("predict", run, template.texts, "--out", "-"))
        )
        assert_named(finished, f"{name} of format {content!r}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "key", "earlier"),
    sampled(
        itertools.product(
            ["missing", None, 5, "text", [], {}],
            ["status", "identity", "data", "data.label_names", "data.tokenizer", "data.text"],
            [False, True],
        ),
        2,
    ),
)
def test_a_record_without_an_entry(template, tmp_path, key, value, earlier):
    run = tmp_path / "run"
    shutil.copytree(template.stopped, run, symlinks=True)
    if earlier:
        as_before_checksums(run)
    record = json.loads((run / "run.json").read_text())
    record.pop("crc32", None)
    *outer, name = key.split(".")
    entries = record[outer[0]] if outer else record
    entries.pop(name) if value == "missing" else entries.update({name: value})
    (run / "run.json").write_text(json.dumps(record if earlier else with_checksum(record)))
    for command in (("predict", run, template.texts, "--out", "-"), ("train", "--out", run)):
        finished = penstock(*command)
        assert "Traceback" not in finished.stderr, finished.stderr
        if finished.returncode:
            assert_named(finished, f"{key} {value}")


def test_previous_without_damage_says_so(template, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(template.stopped, run, symlinks=True)
    assert "is whole and is gone on from" in penstock("train", "--out", run, "--resume=previous").stderr
    assert template.results(run) == whole


def test_the_previous_one_is_damaged_too(template, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(template.stopped, run, symlinks=True)
    for folder in (run / "checkpoints").iterdir():
        flipped(0.5)(folder / "model.safetensors")
    for options in ((), ("--resume=previous",)):
        finished = penstock("train", "--out", run, *options)
        assert_named(finished, "all")
        assert "no earlier checkpoint is whole" in finished.stderr
        assert finished.returncode == 7
