"""What a run's loop is opened with: its model, and its tokenizer's files."""

from pathlib import Path
from typing import Any

from torch import Tensor

from penstock.engine.data.manifest import TOKENIZER_NAME
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import save_tokenizer
from penstock.engine.errors import RunError
from penstock.engine.models import build_model, load_model
from penstock.engine.models.build import check_pair_types, settings_of_saved
from penstock.engine.models.settings import ModelSettings
from penstock.engine.models.start import Say, start_model
from penstock.engine.training.resume import Found
from penstock.engine.training.state import check_stored, check_weights


def build_run_model(
    settings: ModelSettings, store: Store, last: Path | None, unmerged: dict[str, Tensor] | None, say: Say
) -> Any:
    """The model: new, from an earlier run's weights, or as the last checkpoint has it.

    Args:
        last: the checkpoint's folder; None for a run that begins.
        unmerged: the checkpoint's weights with their adapters apart, if it has any.

    Raises:
        StateError: the checkpoint is not of this model.
    """
    if settings.start_from is not None:
        folder = last or Path(settings.start_from) / "best"  # which has checksums, unlike the run's own folder
        names, size = store.label_names, store.vocab_size
        model = start_model(
            settings, folder, label_names=names, vocab_size=size, say=say, multi_label=store.multi_label
        )
    else:
        model = build_model(
            settings if last is None else settings_of_saved(settings, last),
            vocab_size=store.vocab_size,
            num_labels=len(store.label_names),
            label_names=store.label_names,
            tokenizer=store.tokenizer(),
            multi_label=store.multi_label,
        )
        if last is not None and unmerged is None:
            weights = load_model(last).state_dict()
            check_weights(weights, model.state_dict())
            model.load_state_dict(weights)
    if store.seconds is not None:
        check_pair_types(model)
    if unmerged is not None:
        check_weights(unmerged, model.state_dict())
        model.load_state_dict(unmerged)
    if last is not None:
        check_stored(last, model.saved_state(), store.label_names)
    return model


def tokenizer_files(store: Store, found: Found | None) -> dict[str, bytes]:
    """{name: content} of the tokenizer's files, read once: the store need not be there to the end.

    A run that goes on has those that it began with.

    Raises:
        RunError: they cannot be read.
    """
    manifest, names = store.manifest, store.path / TOKENIZER_NAME
    begun = found is not None and found.sealed
    folder = found.folder if found is not None and begun else names
    try:
        files = {file.name: (folder / file.name).read_bytes() for file in sorted(names.iterdir()) if file.is_file()}
    except OSError as error:
        raise RunError(f"the tokenizer in {folder} cannot be read: {error.strerror} ({error.filename})") from None
    if not begun and (store.max_length, store.truncation) != (manifest.max_length, manifest.truncation):
        # whoever serves the model without penstock cuts texts as it was trained
        files |= save_tokenizer(store.tokenizer(), store.max_length, store.truncation)
    return files
