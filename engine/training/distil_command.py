"""What `penstock distil` was asked for, read and checked before anything slow is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.data.sources.alike import Columns, open_alike
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.training.command import read_settings
from penstock.engine.training.raw_texts import RawTexts
from penstock.engine.training.run_directory import another_run, check_out
from penstock.engine.training.run_record import has_checkpoint, is_store, read_record
from penstock.engine.training.settings import Settings, load_saved_settings
from penstock.engine.training.teachers import open_teachers


@dataclass(frozen=True)
class Options:
    """As the command line has them; `share` is (i, n) of --shard i/n."""

    out: Path | None
    teachers: Sequence[Path]
    unlabelled: str | None
    train: Path | None
    test: Path | None
    logits: Path | None
    share: tuple[int, int] | None
    raw: RawTexts
    config: Path | None


@dataclass(frozen=True)
class DistilCommand:
    """
    Attributes:
        unlabelled, train, test: the stores, open; the last two are None where none was asked for.
        logits: the folder for those of the unlabelled texts; None for one beside their store.
        goes_on: the run has begun, and all is as it has it.
    """

    settings: Settings
    teachers: list[Path]
    unlabelled: Store
    train: Store | None
    test: Store | None
    logits: Path | None
    goes_on: bool = False


def read_distil_command(options: Options, models: Mapping[str, str | None], overrides: Sequence[str]) -> DistilCommand:
    """Reads the settings and opens the stores; raw texts are prepared. Without teachers, all is as in the run that is
    there.

    Args:
        models: {"section.key": what an option of its own says, or None}. overrides: `section.key=value`, above those.

    Raises:
        PenstockError: an option, a path, a name or a setting is wrong.
    """
    out = options.out
    if out is None and options.share is None:
        raise ConfigError("say where the student goes: --out RUN")
    if out is not None and options.share is not None:
        raise ConfigError("--shard makes logits alone and trains nothing: leave --out out")
    settings = read_settings(options.config, models, overrides, out)
    if not options.teachers and options.unlabelled is None and out is not None and (out / "run.json").exists():
        return _as_it_was(out, options, settings, any(models.values()) or bool(overrides or options.config))
    if not options.teachers or options.unlabelled is None:
        missing = "--teacher RUN" if not options.teachers else "--unlabelled STORE|SOURCE"
        raise ConfigError(f"say what to learn from: {missing}")
    if out is not None:
        check_out(out)
        settings = _as_begun(out, settings)
    train = None if options.train is None else Store.open(options.train)
    test = None if options.test is None else Store.open(options.test)
    open_teachers(options.teachers)
    unlabelled = _open_unlabelled(options, options.unlabelled, train)
    return DistilCommand(settings, list(options.teachers), unlabelled, train, test, options.logits)


def _as_it_was(out: Path, options: Options, settings: Settings, asked: bool) -> DistilCommand:
    """The run that is there, with its teachers and stores."""
    record = read_record(out, described=True)
    origin = record["data"].get("distillation")
    if origin is None:
        raise ConfigError(f"{out} is no distillation: penstock train --out {out} goes on with it")
    if options.train is not None or options.test is not None or options.logits is not None:
        raise ConfigError(f"give --teacher and --unlabelled too, or leave all of them out: {out} knows what it had")
    if options.raw.stated:
        raise ConfigError(f"{options.raw.stated[0]} has no effect: {out} goes on with the texts that it had")
    goes_on = has_checkpoint(out)
    if not goes_on:
        # nothing to go on from: the run begins again, with what it was begun with
        if asked:
            raise ConfigError(f"{out} has no checkpoint yet: to begin it with other settings, give --teacher too")
        settings = load_saved_settings(out / "config.yaml")
    else:
        settings = _as_begun(out, settings)
    try:
        places: dict[str, Any] = {name: origin[name] for name in ("teachers", "unlabelled", "labelled", "logits")}
        logits = Path(places["logits"][-1])
        teachers = [Path(teacher) for teacher in places["teachers"]]
        train = None if places["labelled"] is None else Store.open(places["labelled"])
        unlabelled = Store.open(places["unlabelled"], labelled=False)
        if goes_on and len(places["logits"]) != 1 + (train is not None):
            raise TypeError
    except (KeyError, TypeError, IndexError):
        raise RunError(f"{out / 'run.json'} is damaged: data.distillation is not what penstock writes") from None
    place = record["data"].get("test")
    test = None if place is None else Store.open(place)
    return DistilCommand(settings, teachers, unlabelled, train, test, logits, goes_on)


def _as_begun(out: Path, settings: Settings) -> Settings:
    """The settings with the section `distillation` of the run that is there, if one is: before the teachers read what
    it does not learn from.

    Raises:
        RunError: another one is asked for.
    """
    if not has_checkpoint(out):
        return settings
    if "distillation" not in read_record(out)["data"]:
        raise RunError(f"{out} holds a run that learns from labels alone: give another --out")
    there, here = load_saved_settings(out / "config.yaml").flat(), settings.flat()
    keys = [key for key in here if key.startswith("distillation.") or key == "training.seed"]
    for key in keys:
        if key in (settings.given or ()) and here[key] != there[key]:
            raise another_run(out, key, there[key], here[key])
    return settings.replace({key: there[key] for key in keys})


def _open_unlabelled(options: Options, name: str, train: Store | None) -> Store:
    if is_store(name):
        if options.raw.stated:
            raise ConfigError(f"{options.raw.stated[0]} has no effect: {name} is a store")
        return Store.open(name, labelled=False)
    if options.out is None:
        raise ConfigError(f"--shard reads a store, and {name} is none: penstock prepare --unlabelled makes one")

    teacher = options.teachers[0]
    data = read_record(teacher, described=True)["data"]
    whole = options.out.resolve()
    place = whole.with_name(f"{whole.name}.unlabelled")
    columns = Columns(data["text"], None, data.get("is_pair", False), f"the training of {teacher}")
    raw = options.raw
    return raw.prepare(
        open_alike(name, columns, text=raw.text, need_label=False, reading=raw.reading, out=place),
        name,
        place,
        **({"tokenizer": str(teacher / "best")} if train is None else {"like": train.path}),
    )
