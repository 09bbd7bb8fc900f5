"""How much of the test texts a cut leaves out, where the test data is still there."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.engine.data.store import Store
from penstock.engine.errors import PenstockError


def find_test_store(folder: Path, study: Mapping[str, Any]) -> Store | None:
    """The study's test data where it still is; None elsewhere: a study's folder may be carried away from it."""
    described = study.get("test", {})
    given = [*study["identity"]["test"], *([described["place"]] if "place" in described else [])]
    for place in (folder / "data" / "test", *map(Path, given)):
        with contextlib.suppress(PenstockError, OSError):
            store = Store.open(place)
            if store.fingerprint == described.get("fingerprint"):
                return store
    return None


def share_cut(store: Store, tokens: int) -> float:
    """The share of the store's texts that are longer than that, those that it has cut itself included."""
    if tokens >= store.max_length:
        return store.manifest.truncated_texts / max(store.num_examples, 1)
    return float((store.lengths > tokens).mean())
