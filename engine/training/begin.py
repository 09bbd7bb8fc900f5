"""How a run begins: which settings it has, new or resumed, and the line that says so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.engine.data.hub_names import is_same, settled
from penstock.engine.data.label_lists import counts_of
from penstock.engine.data.store import Store
from penstock.engine.data.transfer_set import TransferSet
from penstock.engine.errors import ConfigError, StoreError
from penstock.engine.models.architectures import max_length
from penstock.engine.models.loading import load_config
from penstock.engine.models.settings import ModelSettings
from penstock.engine.models.start import Say
from penstock.engine.training.loop import Loop
from penstock.engine.training.precision import resolve_precision
from penstock.engine.training.reading import LENGTH, OWN, TRUNCATION, as_settled, read_by, settle_reading
from penstock.engine.training.recipe import TrainingSet
from penstock.engine.training.run_directory import RunDirectory, another_run
from penstock.engine.training.run_record import check_kind, read_record
from penstock.engine.training.sections import used_by
from penstock.engine.training.setting_use import (
    DECIDED,
    ENDING_KEYS,
    FREE_KEYS,
    LIMITS,
    WITH_VALIDATION,
    check_distillation,
    check_not_distilled,
    check_used,
)
from penstock.engine.training.settings import Settings, inherit, load_saved_settings


def new_settings(
    asked: Settings, store: Store, rows: np.ndarray | None, validation_rows: np.ndarray | None
) -> Settings:
    """The settings of a new run: what is left open is chosen by the recipe.

    Raises:
        ConfigError: a setting has no effect, or there are no training rows.
        ModelError: there is no such encoder.
        StoreError: the run to start from was trained with another tokenizer.
    """
    if (run := asked.model.start_from) is not None:
        asked = inherit(asked).replace({"model.start_from": settled(run)})
        _check_tokenizer(store, run)
    elif asked.model.encoder is not None:
        asked = asked.replace({"model.encoder": settled(asked.model.encoder)})
    if asked.given is None:  # others were checked when they were read
        check_used(asked, sorted(asked.stated() - (set() if validation_rows is None else WITH_VALIDATION)))
    if store.multi_label and not asked.pretrains:
        asked = _for_label_lists(asked, store)
    if isinstance(store, TransferSet):
        check_distillation(asked)
    else:
        check_not_distilled(asked)
    width, positions = _encoder_sizes(asked.model) if asked.model.kind == "encoder" else (None, None)
    asked = settle_reading(asked, store, positions)
    read = read_by(asked, store).lengths
    lengths = read if rows is None else read[rows]
    if not len(lengths):
        raise ConfigError("there are no training rows")
    validates = None if validation_rows is None else len(validation_rows) > 0
    return asked.resolve(TrainingSet.of(lengths, width, store.num_labels), validates=validates)


def _for_label_lists(asked: Settings, store: Store) -> Settings:
    """The settings for rows with lists of labels: by default micro-F1 chooses the best model."""
    if asked.training.label_smoothing:
        raise ConfigError(
            f"training.label_smoothing={asked.training.label_smoothing:g} has no meaning with the lists of labels of "
            f"{store.path}: it spreads one label over the others; leave it out"
        )
    return asked if "training.metric" in asked.stated() else asked.replace({"training.metric": "micro_f1"})


def settings_as_begun(directory: RunDirectory, asked: Settings, store: Store, say: Say = lambda line: None) -> Settings:
    """The settings of the run that is there, with what may change as it is asked for now.

    Args:
        store: the training data, whole.
        say: is told what is left open and stays as it is.

    Raises:
        RunError: something else is asked for. ConfigError: nothing would end the run.
    """
    check_kind(directory.path, directory.record, asked.pretrains)
    saved = saved_settings(directory)
    there, here = saved.flat(), asked.flat()
    given = asked.stated() if asked.given is None else asked.given
    changed = {key: here[key] for key in FREE_KEYS & given}
    for key in [key for key in here if key in asked.stated() - FREE_KEYS]:
        if key in ENDING_KEYS:
            changed[key] = here[key]
        elif not _agree(key, here[key], there[key], store):
            raise another_run(directory.path, key, there[key], here[key])
    changed |= _left_open(directory.path, asked, saved.replace(changed), say)
    return saved.replace(changed)


def _agree(key: str, here: Any, there: Any, store: Store) -> bool:
    """Whether a stated value is that which a run's configuration has."""
    if key == LENGTH:
        here = as_settled(here, store)
    if key == TRUNCATION and here == store.truncation:
        here = OWN
    is_place = key in ("model.encoder", "model.start_from") and there is not None
    return here == there or (is_place and is_same(here, there))


def _left_open(run: Path, asked: Settings, begun: Settings, say: Say) -> dict[str, Any]:
    """What changes in a run that has begun where a setting is now stated to be left open: limits are lifted, and what a
    new run decides stays.

    Raises:
        RunError: the run was begun with a value of another setting. ConfigError: no limit is left.
    """
    here, there = asked.flat(), begun.flat()
    left_open = sorted(key for key in asked.left_open() - FREE_KEYS if here[key] != there[key])
    lifted = dict.fromkeys(key for key in left_open if key in LIMITS)
    if "training.epochs" in left_open and any((there | lifted)[key] is not None for key in LIMITS):
        lifted["training.epochs"] = None
    if lifted and all((there | lifted)[key] is None for key in (*LIMITS, "training.epochs")):
        raise ConfigError(f"{', '.join(lifted)}=null leaves nothing that ends {run}: give training.epochs")
    kept = [key for key in left_open if key not in lifted]
    for key in kept:
        if key not in DECIDED and begun.model.is_of(used_by(key)):
            raise another_run(run, key, there[key], here[key])
    if kept:
        values = ", ".join(f"{key}={there[key]}" for key in kept)
        say(f"note: what is left open now stays as {run} has it: {values}")
    return lifted


def saved_settings(directory: RunDirectory) -> Settings:
    return load_saved_settings(directory.path / "config.yaml")


def comes_to_the_same(directory: RunDirectory, settings: Settings) -> bool:
    """Whether the run that is there has the result that it would have with these settings."""
    here, there = settings.flat(), saved_settings(directory).flat()
    return all(here[key] == there[key] for key in here if key not in FREE_KEYS)


def go_on(loop: Loop, identity: Mapping[str, Any]) -> list[str]:
    """Makes the run that is there one that ends where the settings now say; returns what changed.

    Raises:
        ConfigError: see `extension_of`.
    """
    changed = extension_of(loop)
    if changed:
        # the record first: as long as it says "complete", its result is that of config.yaml
        loop.directory.update(loop.settings.to_yaml(), status="running", identity=dict(identity))
    return changed


def extension_of(loop: Loop) -> list[str]:
    """The settings by which the run that is there would now end elsewhere.

    Raises:
        ConfigError: they end it before where it is, or where it is.
    """
    directory, counters, training = loop.directory, loop.counters, loop.settings.training
    before, after = saved_settings(directory).flat(), loop.settings.flat()
    changed = [f"{key} {_text(before[key])} -> {_text(after[key])}" for key in ENDING_KEYS if before[key] != after[key]]
    if not changed:
        return []
    for key, limit, done in (
        ("training.epochs", training.epochs, counters.epoch),
        ("training.max_steps", training.max_steps, counters.step),
        ("pretraining.tokens", loop.settings.pretraining.tokens, counters.tokens),
    ):
        if limit is not None and limit < done and before[key] != limit:
            what = key.rpartition(".")[2].removeprefix("max_")
            raise ConfigError(f"{key}={limit}: {directory.path} has done {done:,} {what} already")
    if counters.stopped_by:
        reason = next(key for key in ENDING_KEYS if key.endswith(f".{counters.stopped_by}"))
        raise ConfigError(
            f"{', '.join(changed)} changes nothing: {directory.path} is over by {reason}={after[reason]}; raise that"
        )
    return changed


def _text(value: int | None) -> str:
    return "null" if value is None else str(value)


def precision_of(directory: RunDirectory, settings: Settings, device: torch.device, say: Say) -> str:
    """A run's precision: "fp32", "bf16" or "fp16". "auto" is what it was where the run began, whatever it is here.

    Raises:
        ConfigError: the device cannot train in it.
    """
    asked = settings.training.precision
    there = directory.record.get("precision") if asked == "auto" else None
    if there not in ("fp32", "bf16", "fp16"):
        return resolve_precision(asked, device)
    here = resolve_precision("auto", device)
    if there != here:
        if (there, device.type) == ("fp16", "cpu"):
            raise ConfigError(
                f"{directory.path} was begun on a GPU, where training.precision=auto is fp16: a CPU cannot go on with "
                "that"
            )
        say(f"training.precision=auto was {there} where the run began and stays so; here it would be {here}")
    return there


def opening_line(loop: Loop) -> str:
    """What is trained, its size, from what weights, on what, for how long, and how."""
    settings, counters, store, rows = loop.settings, loop.counters, loop.data.train, loop.data.rows
    data, training = settings.data, settings.training
    parameters = sum(parameter.numel() for parameter in loop.model.parameters())
    trainable = sum(parameter.numel() for parameter in loop.model.parameters() if parameter.requires_grad)
    size = f"{parameters:,} parameters"
    if trainable != parameters:
        size += f", {trainable:,} of them trained{_why_not_all(settings.model)}"
    if settings.pretrains:
        classes = f" without labels ({settings.pretraining.objective} tokens, {settings.pretraining.share:.0%} of them)"
    elif store.multi_label:
        counts = counts_of(store.label_offsets, store.label_ids, rows, store.num_labels)
        classes = f", multi-label: {store.num_labels} labels, mean {counts.sum() / len(rows):.2f} per example"
    else:
        counts = np.bincount(store.labels[rows], minlength=store.num_labels)
        majority = f"{counts.max() / len(rows):.1%} {store.label_names[int(counts.argmax())]!r}"
        if isinstance(store, TransferSet):
            known = int(store.labelled[rows].sum())
            majority += f"; {known:,} true labels, {len(rows) - known:,} of teachers"
        classes = f" in {store.num_labels} classes ({majority})"
    held = f"{len(loop.data.validation_rows):,} more" if len(loop.data.validation_rows) else "none"
    steps = _total_steps(loop)
    done = f"resumes after step {counters.step:,} of" if counters.step else "in"
    epochs = f"{training.epochs} epochs" if training.epochs is not None else "any number of epochs"
    if (tokens := settings.pretraining.tokens) is not None:
        epochs += f", {tokens:,} tokens at most"
    recipe = [
        f"learning rate {training.learning_rate:.3g}",
        f"batches of {data.tokens_per_batch:,} tokens"
        + (f", {data.batches_per_step} to a step" if data.batches_per_step > 1 else ""),
        epochs,
        f"patience {training.patience or 'off'}",
        loop.precision,
    ]
    if training.class_weights is not None:
        recipe.append("class weights" + (" balanced" if training.class_weights == "balanced" else ""))
    if training.label_smoothing:
        recipe.append(f"label smoothing {training.label_smoothing:g}")
    if isinstance(store, TransferSet):
        recipe.append(f"temperature {settings.distillation.temperature:g}, mix {settings.distillation.mix:g}")
    return (
        f"{settings.model.describe()}, {size}, {_origin(settings.model)}; "
        f"{len(rows):,} examples{classes}, {held} for validation; "
        f"{done} {steps}; {', '.join(recipe)}"
    )


def extension_line(loop: Loop, changed: list[str]) -> str:
    return (
        f"{', '.join(changed)}: from step {loop.counters.step:,} on the learning rate follows the schedule of the new "
        f"total, at first {loop.next_learning_rate():.3g}"
    )


def _total_steps(loop: Loop) -> str:
    training = loop.settings.training
    limits = [] if training.max_steps is None else [(training.max_steps, "")]
    epoch = loop.steps_of_an_epoch()
    if training.epochs is not None:
        limits.append((training.epochs * epoch, "about "))
    if (tokens := loop.settings.pretraining.tokens) is not None:
        limits.append((-(-tokens * epoch // int(loop.plan.tokens.sum())), "about "))
    steps, about = min(limits)
    return f"{about}{steps:,} steps"


def _why_not_all(model: ModelSettings) -> str:
    """Why some weights are not trained, in brackets: it may be by the settings of an earlier run."""
    parts = []
    if model.lora_rank is not None:
        parts.append(f"adapters of rank {model.lora_rank}")
    if model.freeze_layers is not None:
        parts.append(f"frozen: embeddings, {model.freeze_layers} layer{'s' if model.freeze_layers > 1 else ''}")
    elif model.freeze_embeddings:
        parts.append("frozen: embeddings")
    return f" ({'; '.join(parts)})" if parts else ""


def _origin(model: ModelSettings) -> str:
    if model.start_from is not None:
        return f"from the weights of the run {model.start_from}"
    if model.kind == "encoder":
        return f"from the weights of {model.encoder}"
    if model.embeddings == "encoder":
        return f"from scratch, token embeddings from {model.encoder}"
    return "from scratch"


def _encoder_sizes(model: ModelSettings) -> tuple[int, int]:
    """(units of its hidden states, tokens of a text that it has positions for)"""
    if model.start_from is None:
        assert model.encoder is not None
        config = load_config(model.encoder)
    else:
        config = load_config(Path(model.start_from) / "best")
    return config.hidden_size, max_length(config)


def _check_tokenizer(store: Store, run: str) -> None:
    data = read_record(run, described=True)["data"]
    if store.manifest.tokenizer.fingerprint != data["tokenizer"]:
        raise StoreError(
            f"{store.path} was prepared with another tokenizer than the data of {run}, whose weights are to be the "
            f"start: prepare it with --tokenizer {Path(run) / 'best'}"
        )
