"""What can be found wrong with a study before its data is read: settings, paths, columns. Needs neither torch nor
transformers, which take seconds to import."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from penstock.engine.data.clusters import read_clusters
from penstock.engine.data.hub_names import why_missing
from penstock.engine.data.manifest import MANIFEST_NAME
from penstock.engine.data.own_code import NONE_IS_RUN, code_of_model
from penstock.engine.data.sources import Source, open_sources
from penstock.engine.data.sources.alike import Columns, open_alike
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import TRUNCATIONS
from penstock.engine.errors import ConfigError, ModelError, SourceError, StoreError
from penstock.engine.setting import notes_on_overruled
from penstock.engine.study.baselines import check_installed
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.settings import StudySettings, family_settings, pretraining_settings, used_earlier

HAS_LISTS = "has lists of labels; a study compares models that choose one label: penstock train takes lists"


def check_plan(study: StudySettings) -> list[str]:
    """Lines that the user should read.

    Raises:
        ConfigError: an option or override is wrong.
        SourceError, StoreError: the training or test data cannot be opened, or lacks the columns, --cluster's too.
        ModelError: the encoder is not there.
    """
    for name, value, choices in (
        ("--truncation", study.truncation, TRUNCATIONS),
        ("--bad-rows", study.bad_rows, ("fail", "quarantine")),
    ):
        if value is not None and value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    for name in study.families:
        teacher = FAMILIES[name].teacher
        if teacher is not None and teacher not in study.families:
            raise ConfigError(f"the family {name} learns from that of {teacher}: name {teacher} in --families too")
    if study.pretrains:
        pretraining_settings(study)
    elif study.pretrain_tokens is not None:
        raise ConfigError(
            f"--pretrain-tokens={study.pretrain_tokens} has no effect: name a family that pretrains in --families, "
            "such as lstm-pretrained"
        )
    encoders = set(_checked_overrides(study))
    prepared = [is_store(sources) for sources in (study.train, study.test)]
    if not all(prepared) and study.encoder is not None:
        encoders.add(study.encoder)  # whose tokenizer it takes
    for encoder in sorted(encoders):
        check_encoder(encoder)
    like: Store | None = None  # the training data's, when it is the test data's turn
    for sources, store in zip((study.train, study.test), prepared, strict=True):
        if store:
            like = Store.open(sources[0])
            if like.multi_label:
                raise StoreError(f"{sources[0]} {HAS_LISTS}")
            if sources is study.test and study.cluster is not None:
                read_clusters(like, study.cluster)
            continue
        for source in sources:
            if is_store([source]):
                raise ConfigError(f"{source}: a store; give it alone, or prepare one of all the sources first")
        # the hub's data sets are not opened twice: that is the loading itself
        local = [name for name in sources if not name.startswith("hf:")]
        for opened in open_as_prepared(local, study, like) if local else ():
            if opened.multi_label:
                raise SourceError(f"{opened.name}: column {opened.label!r} {HAS_LISTS}")
            if sources is study.test and study.cluster is not None:
                opened.carry([study.cluster])  # which says if there is no such column
    for name, file in study.external.items():
        if not Path(os.path.expanduser(file)).is_file():
            raise SourceError(f"--external {name}={file}: no such file")
    notes = [*notes_on_overruled(study.overrides, "[FAMILY.]section.key=value"), *_unused(study, *prepared)]
    if study.encoder is None and not prepared[0]:
        notes.append(
            f"no family needs an encoder, and none is given: the tokenizer is trained on the training texts "
            f"({study.tokenizer}); families with an encoder then need a study of their own"
        )
    notes += [
        f"{each}: not used: only families of an earlier command have a use for it" for each in used_earlier(study)
    ]
    families = {override.split(".")[0] for override in study.overrides} & FAMILIES.keys() - set(study.families)
    return notes + [f"settings for {family}, which is not among --families: not used" for family in sorted(families)]


def open_as_prepared(sources: Sequence[str], study: StudySettings, like: Store | None) -> list[Source]:
    """A study's sources, from whose columns its store is prepared.

    Args:
        like: the store whose columns are taken where none are named, as `prepare` has it; None for none.

    Raises:
        SourceError: as `open_sources`.
    """
    options: dict[str, Any] = {"text": study.text, "label": study.label, "reading": study.reading}
    if like is None:
        return open_sources(list(sources), **options)
    return open_alike(list(sources), Columns.of(like), say=lambda line: None, **options)  # who prepares says it


def is_store(sources: Sequence[str]) -> bool:
    """Whether these are one store, rather than sources to be prepared."""
    return len(sources) == 1 and (Path(sources[0]) / MANIFEST_NAME).is_file()


def check_encoder(name: str) -> None:
    """
    Raises:
        ModelError: there is no such folder, or it holds no model, or the hub cannot have such a name.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"encoder {name}: the folder holds no config.json, so no model")
        try:
            code = code_of_model(json.loads((folder / "config.json").read_bytes()))
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise ModelError(f"encoder {name}: its config.json cannot be read: {error}") from None
        if code is not None:
            raise ModelError(f"encoder {name}: its config.json asks for code of its own ({code}), {NONE_IS_RUN}")
    if reason := why_missing(name):
        raise ModelError(f"encoder {name}: {reason}")


def _checked_overrides(study: StudySettings) -> Iterator[str]:
    """Yields the encoders that the families start from."""
    for name in study.families:
        family = FAMILIES[name]
        if family.baseline is not None:
            check_installed(family.baseline)
        settings = family_settings(study, name)
        if family.baseline is not None and family.needs_encoder:
            yield study.encoder_for(name)
        if settings.model.encoder is not None:
            yield settings.model.encoder


def _unused(study: StudySettings, train_is_store: bool, test_is_store: bool) -> Iterator[str]:
    """A line for each option that does nothing because a store has settled it."""
    if train_is_store and test_is_store:
        options: tuple[tuple[str, Any, Any], ...] = (
            ("--text", study.text, None),
            ("--label", study.label, None),
            ("--bad-rows", study.bad_rows, StudySettings.bad_rows),
            ("--separator", study.reading.separator, None),
            ("--encoding", study.reading.encoding, None),
        )
        for name, value, default in options:
            if value != default:
                yield f"{name} {value} is not used: train and test are stores already"
    if train_is_store:
        kept = Store.open(study.train[0]).manifest
        if study.max_length is not None and study.max_length > kept.max_length and not study.whole:
            yield (
                f"--max-length {study.max_length}: {study.train[0]} keeps {kept.max_length} tokens of a text, and no "
                "more is read"
            )
