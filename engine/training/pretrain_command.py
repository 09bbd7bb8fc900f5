"""What `penstock pretrain` was asked for, read and checked before anything slow is imported."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.engine.data.manifest import MANIFEST_NAME
from penstock.engine.errors import ConfigError
from penstock.engine.training.command import TrainCommand, read_command, read_settings
from penstock.engine.training.raw_texts import RawTexts
from penstock.engine.training.run_directory import check_out
from penstock.engine.training.run_record import has_checkpoint, is_store, objective_of, read_record

DEFAULT_OBJECTIVE = "masked"
TRAINED_TOKENIZER = "train:bpe:30000"


def read_pretrain_command(
    out: Path,
    texts: str | None,
    raw: RawTexts,
    config: Path | None,
    options: Mapping[str, str | None],
    overrides: Sequence[str],
    temporary: Path | None = None,
) -> TrainCommand:
    """As `read_command`.

    Args:
        texts: a store, or a source, which is then prepared in RUN.texts; None for a run that is there. A run that has
            begun needs no tokenizer for it any more.
        temporary: a folder to prepare it in instead, unless RUN.texts is finished; None for none.
    """
    check_out(out)
    there = objective_of(read_record(out)) if (out / "run.json").exists() else None
    usual = {"pretraining.objective": there or DEFAULT_OBJECTIVE}
    if (texts is None or is_store(texts)) and raw.stated:
        what = "no raw texts are given" if texts is None else f"{texts} is a store"
        raise ConfigError(f"{raw.stated[0]} has no effect: {what}")
    settings = read_settings(config, options, overrides, out, usual)
    store = None if texts is None else Path(texts)
    if texts is not None and not is_store(texts):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(f"several processes read a store, and {texts} is none: penstock prepare --unlabelled")
        whole = out.resolve()
        tokenizer = raw.tokenizer or settings.model.encoder or TRAINED_TOKENIZER
        place = whole.with_name(f"{whole.name}.texts")
        if temporary is not None and not (place / MANIFEST_NAME).is_file():
            place = temporary / place.name
        begun = has_checkpoint(out) and (place / MANIFEST_NAME).is_file()
        made = raw.as_begun(texts, place) if begun else None
        if made is None:
            made = raw.prepare(texts, texts, place, tokenizer=tokenizer, text=raw.text)
        store = made.path
    return read_command(out, store, None, config, options, overrides, usual)
