"""Files that penstock reads again, damaged by Hypothesis: each is named in one line, or makes no difference.

    python tests/fuzz_files.py manifest --minutes 10       also: tokenizer, state, run, trial; all: one after the other

A file is tried in two ways. *Damaged*: as a disk or a hand might leave it; what comes out is an error of one line or
what came out of the sound file. *Forged*: its checksums made to fit again, as somebody else's file may be; nothing can
be said of what comes out, but it is an error of one line, or a result. Neither is ever a traceback, nor does it take
longer than ten seconds of a processor, nor end the process: that one works in a copy of this one, and the damage is
kept in a file beforehand.
"""

import argparse
import base64
import contextlib
import copy
import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

TESTS = Path(__file__).resolve().parent
LONGEST = 10.0  # seconds of a processor for one reading
MEMORY = 16 << 30  # bytes of addresses that a reading may take
VALUES: list[Any] = [None, True, False, 0, -1, 1, 2, 2**31, 2**32 - 1, 2**63, -(10**30), 0.5, 17.5, 1e308, float("nan")]
VALUES += [float("-inf"), "", "x", "../x", "/dev/zero", "\0", "\ud800", "é" * 300, [], [[]], {}, {"": {}}, [None] * 50]
VALUES += ["0" * 64, "step-00000001", "running", "complete", "lstm-60-0", "head+tail", [0], ["x", "x"], {"x": [1, 2]}]
PIECES = [b'"', b"{", b"[", b"}", b"]", b",", b":", b"9" * 60, b"1e999", b"\\ud800", b"\0", b"\xff", b"NaN", b"null"]


@st.composite
def edited_bytes(draw: DrawFn, original: bytes) -> bytes:
    """Bits turned, pieces cut out, put in, doubled or made zero."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "end", "insert", "double", "zero", "byte"]))
        length = draw(st.integers(1, 64))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + length]
        elif kind == "end":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=8))
        elif kind == "double":
            content[at:at] = content[at : at + length]
        elif kind == "zero":
            content[at : at + length] = bytes(len(content[at : at + length]))
    return bytes(content)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield value, key
        yield from places(one)


@st.composite
def edited_json(draw: DrawFn, original: Any) -> Any:
    """Entries taken out, renamed, exchanged, or given values of another kind or size."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(value))
        if not known:
            break
        holder, key = draw(st.sampled_from(known))
        kind = draw(st.sampled_from(["remove", "rename", "exchange", "number", "value", "value", "text"]))
        if kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=4))] = holder.pop(key)
        elif kind == "exchange":
            other, theirs = draw(st.sampled_from(known))
            with contextlib.suppress(KeyError, IndexError):
                holder[key] = copy.deepcopy(other[theirs])
        elif kind == "number" and isinstance(holder[key], int | float):
            holder[key] = draw(st.sampled_from([-holder[key], holder[key] + 1, holder[key] * 10**9, holder[key] / 3]))
        elif kind == "text":
            holder[key] = draw(st.text(max_size=20))
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return value


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: DrawFn, original: bytes) -> bytes:
    """A JSON file, its bytes or what it says."""
    if draw(st.integers(0, 2)) == 0:
        return draw(edited_bytes(original))
    return dumped(draw(edited_json(json.loads(original))))


@dataclass(frozen=True)
class Target:
    """A file that is damaged.

    Attributes:
        file: its path in the folder.
        contents: what the file may be, from what it is.
        forge: makes the checksums fit again; None where the file is only damaged.
        read: gives all that a command takes from the file.
        always: damage never goes without an error.
    """

    file: Path
    contents: Callable[[bytes], st.SearchStrategy[bytes]]
    read: Callable[[], Any]
    forge: Callable[[bytes], bytes] | None = None
    always: bool = False


def without_checksum(content: bytes) -> bytes:
    try:
        value = json.loads(content)
        value.pop("crc32", None)
        return dumped(value)
    except (ValueError, AttributeError, RecursionError):
        return content


# -- what is read ------------------------------------------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """A store, a run that was stopped two steps before its end, and a study."""
    from fabricated_study import fabricate
    from few_texts import write_texts

    from penstock.engine.data.prepare import prepare
    from penstock.engine.study.trials import read_result, write_result
    from penstock.engine.training.settings import load_settings
    from penstock.engine.training.signals import Interrupted
    from penstock.engine.training.step import Stepper
    from penstock.engine.training.train import train

    write_texts(folder / "train.csv", 60, 0)
    (folder / "texts.csv").write_text("text\na lovely film\nthe dull plot was awful\n")
    tokenizer = "train:wordpiece:120"
    store = prepare(str(folder / "train.csv"), folder / "train", tokenizer=tokenizer, max_length=16, progress=False)
    tiny = ["model.hidden_size=4", "model.embedding_size=4", "model.num_layers=1", "training.precision=fp32"]
    tiny += ["data.tokens_per_batch=128", "training.max_steps=8", "training.checkpoint_every_steps=2"]
    tiny += ["training.evaluate_every_steps=4", "training.tensorboard=false", "training.patience=0"]
    take_step = Stepper.__call__

    def stopping(self: Stepper, batches: Any, *, step: int, **rest: Any) -> Any:
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
        return take_step(self, batches, step=step, **rest)

    Stepper.__call__ = stopping  # type: ignore[method-assign]
    with contextlib.suppress(Interrupted):
        train(load_settings(None, tiny), store, folder / "run", progress="none")
    Stepper.__call__ = take_step  # type: ignore[method-assign]
    shutil.copytree(folder / "run", folder / "finished", symlinks=True)
    train(load_settings(None, tiny), store, folder / "finished", progress="none")
    study = fabricate(folder / "study")
    for path in (study / "trials").glob("*.json"):
        write_result(study / "trials", read_result(path))


def store_of(folder: Path) -> Callable[[], Any]:
    def read() -> Any:
        import numpy as np

        from penstock.engine.data.store import Store

        store = Store.open(folder / "train")
        tokens, bounds = store.gather(np.arange(store.num_examples))
        names = sorted(store.tokenizer().get_vocab().items())
        verified = list(store.verify(deep=True))
        where = [str(store.source_of(row)) for row in range(0, store.num_examples, 20)]
        parts = [store.lengths.tolist(), store.labels.tolist(), tokens.tolist(), bounds.tolist(), verified, where]
        return [store.manifest, repr(store), store.fingerprint, store.seconds is None, parts, names]

    return read


def tokenizer_of(folder: Path) -> Callable[[], Any]:
    def read() -> Any:
        from penstock.engine.data.tokenizers import TextTokenizer, check_ids, load_tokenizer, save_tokenizer

        tokenizer = load_tokenizer(str(folder / "train" / "tokenizer"))
        check_ids(tokenizer.backend_tokenizer, "it")
        TextTokenizer(tokenizer, 16).encode(["a film", "", "x" * 100, "lovely bright superb"])
        save_tokenizer(tokenizer, 16, "head")

    return read


def command(*arguments: Any) -> Any:
    """What a command prints; a traceback is one."""
    from command_line import penstock

    from penstock.engine.errors import PenstockError

    done = penstock(*arguments)
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("penstock: "), done.stderr
        assert done.returncode in range(2, 13), done.returncode
        raise PenstockError(line)
    return done.raw


def resumed(folder: Path, run: str) -> Callable[[], Any]:
    """The end of a copy of the stopped run."""

    def read() -> Any:
        copied = folder / "copy"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(folder / run, copied, symlinks=True)
        command("train", "--out", copied)
        result = json.loads((copied / "run.json").read_text())["result"]
        figures = {key: result[key] for key in ("validation", "steps", "examples", "best_step", "stopped_by")}
        return [(copied / name / "model.safetensors").read_bytes() for name in ("best", "last")], figures

    return read


def record_of(folder: Path) -> Callable[[], Any]:
    def read() -> Any:
        from penstock.engine.training.run_record import read_trained_record

        record = read_trained_record(folder / "finished")
        return [record, command("predict", folder / "finished", folder / "texts.csv", "--out", "-")]

    return read


def trials_of(folder: Path) -> Callable[[], Any]:
    def read() -> Any:
        from penstock.engine.study import plots
        from penstock.engine.study.report import write_report
        from penstock.engine.study.trials import read_result

        plots.PLOTS.clear()  # they take their time, and show what the report says
        found = read_result(folder / "study" / "trials" / "lstm-500-0.json")
        write_report(folder / "study")
        return [found, (folder / "study" / "report.json").read_bytes()]

    return read


def resealed(folder: Path, run: str) -> Callable[[bytes], bytes]:
    """Seals the run's last checkpoint over what is in it."""

    def forge(content: bytes) -> bytes:
        from penstock.engine.checked import read_seal, seal

        last = folder / run / "last"
        (last / "training_state.pt").write_bytes(content)
        kept = {key: value for key, value in (read_seal(last) or {}).items() if key not in ("format", "files")}
        seal(last, **kept)
        return content

    return forge


@st.composite
def edited_state(draw: DrawFn, original: bytes) -> bytes:
    """A training state: its bytes, or tensors and numbers in it."""
    import io

    import torch

    if draw(st.booleans()):
        return draw(edited_bytes(original))
    state = torch.load(io.BytesIO(original), weights_only=True)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(places(state))))
        value = holder[key]
        if isinstance(value, torch.Tensor) and draw(st.booleans()):
            shape = draw(st.lists(st.integers(0, 70), max_size=3))
            kind = draw(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16]))
            holder[key] = torch.zeros(shape, dtype=kind)
        elif draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def targets(folder: Path) -> dict[str, list[Target]]:
    """By name: the ways that a file is tried."""
    store, run, study = folder / "train", folder / "run", folder / "study"
    manifest, trial, record = store / "manifest.json", study / "trials/lstm-500-0.json", folder / "finished/run.json"
    state = (run / "last").resolve() / "training_state.pt"
    begun = run / "run.json"
    tokenizers = [store / "tokenizer" / name for name in ("tokenizer.json", "tokenizer_config.json")]
    return {
        "manifest": [
            Target(manifest, damaged, store_of(folder)),
            Target(manifest, damaged, store_of(folder), without_checksum),
            Target(manifest, damaged, store_of(folder), signed),
        ],
        "tokenizer": [
            *(Target(file, damaged, store_of(folder), always=True) for file in tokenizers),
            *(Target(file, damaged, tokenizer_of(folder), lambda content: content) for file in tokenizers),
        ],
        "state": [
            Target(state, edited_state, resumed(folder, "run"), always=True),
            Target(state, edited_state, resumed(folder, "run"), resealed(folder, "run")),
        ],
        "run": [
            Target(record, damaged, record_of(folder)),
            Target(record, damaged, record_of(folder), without_checksum),
            Target(begun, damaged, resumed(folder, "run")),
            Target(begun, damaged, resumed(folder, "run"), without_checksum),
        ],
        "trial": [
            Target(trial, damaged, trials_of(folder)),
            Target(trial, damaged, trials_of(folder), without_checksum),
        ],
    }


def signed(content: bytes) -> bytes:
    """A manifest without a checksum and with the fingerprint that fits, if it has one."""
    from types import SimpleNamespace

    from penstock.engine.data.manifest import FileEntry, Manifest

    def entry(value: Any) -> Any:
        return FileEntry(**value) if isinstance(value, dict) else value

    content = without_checksum(content)
    try:
        value = json.loads(content)
        fields = {"is_pair": False, "seconds": None, **value}
        fields |= {name: entry(fields[name]) for name in ("index", "label_index", "seconds")}
        fields |= {"shards": [entry(shard) for shard in value["shards"]]}
        fields["tokenizer"] = SimpleNamespace(**value["tokenizer"])
        value["fingerprint"] = Manifest.fingerprint.fget(SimpleNamespace(**fields))  # type: ignore[attr-defined]
        return dumped(value)
    except Exception:
        return content


# -- trying ------------------------------------------------------------------------------------------------------------


class Counted:
    """How many files were tried, and what became of them."""

    def __init__(self) -> None:
        self.tried = self.named = self.harmless = 0
        self.longest = 0.0


def attempt(target: Target, original: bytes, sound: Any, content: bytes, keep: Path, counted: Counted) -> None:
    """Raises AssertionError, or whatever is no error of one line."""
    from penstock.engine.errors import PenstockError

    keep.write_bytes(base64.b64encode(content))  # in case that it ends this process
    target.file.write_bytes(target.forge(content) if target.forge else content)
    began = time.process_time()
    faulthandler.dump_traceback_later(60 * LONGEST, exit=True)  # by the clock of a busy machine
    found: Any
    try:
        try:
            found = target.read()
        except PenstockError as error:
            found = error
        if isinstance(found, PenstockError):
            assert "\n" not in str(found).strip(), found
            counted.named += 1
            return
        counted.harmless += 1
        if target.forge is None and content != original:
            assert not target.always, "damaged, and not a word"
            assert found == sound, "damaged, another result, and not a word"
    finally:
        faulthandler.cancel_dump_traceback_later()
        took = time.process_time() - began
        counted.tried, counted.longest = counted.tried + 1, max(counted.longest, took)
        assert took < LONGEST, f"it took {took:.1f} seconds"


def try_for(target: Target, seconds: float, seed: int, keep: Path, counted: Counted) -> None:
    """Tries damages for so long.

    Raises:
        Exception: of the smallest damage that one of them could be made into, which is left in `keep`.
    """
    original = target.file.read_bytes()
    around = {path: path.read_bytes() for path in target.file.parent.iterdir() if path.is_file()}
    sound = target.read()
    end = time.monotonic() + seconds

    @seeded(seed)
    @settings(max_examples=1_000_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.contents(original))
    def tried(content: bytes) -> None:
        if time.monotonic() > end:
            raise TimeIsUp
        attempt(target, original, sound, content, keep, counted)

    try:
        tried()
    except TimeIsUp:
        pass
    finally:
        for path, content in around.items():
            path.write_bytes(content)


class TimeIsUp(BaseException):
    pass


def in_a_copy(target: Target, seconds: float, seed: int, keep: Path) -> tuple[dict[str, Any], bool]:
    """What was tried in a copy of this process, and whether nothing was found."""
    told = keep.with_suffix(".json")
    told.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        counted, code = Counted(), 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            try_for(target, seconds, seed, keep, counted)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            told.write_text(json.dumps(counted.__dict__))
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        print(f"exit code {code} with {target.file}, its content in base64:\n{keep.read_text()[:4000]}", flush=True)
    return json.loads(told.read_text()) if told.exists() else dict(Counted().__dict__), code == 0


def warm_up(folder: Path) -> None:
    """What a copy of this process finds in place; what computes is done in one of them."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(TESTS))
    import torch

    import penstock.engine.cli
    import penstock.engine.study.report
    import penstock.engine.training.train  # noqa: F401

    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make_folder(folder)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the sound files could not be made")


def fuzz(folder: Path, name: str, seconds: float, seed: int) -> Iterator[tuple[str, bool]]:
    """A line of each way that a file is tried, and whether nothing was found."""
    ways = targets(folder)[name]
    for number, target in enumerate(ways):
        kept = folder / f"{name}-{number}.base64"
        found, sound = in_a_copy(target, seconds / len(ways), seed + number, kept)
        what = f"{name}: {target.file.name}, {'forged' if target.forge else 'damaged'}"
        yield (
            f"{what}: {found['tried']:,} tried, {found['named']:,} named, {found['harmless']:,} harmless, "
            f"{found['longest']:.1f} s at most{'' if sound else ': FAILED'}",
            sound,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="manifest, tokenizer, state, run, trial, or all")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        warm_up(folder)
        names = list(targets(folder)) if options.names == ["all"] else options.names
        failed = 0
        for name in names:
            for line, sound in fuzz(folder, name, options.minutes * 60, options.seed):
                print(line, flush=True)
                failed += not sound
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
