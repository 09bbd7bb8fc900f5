"""Models and tokenizers that bring Python of their own, none of which is ever run. Needs no transformers."""

from collections.abc import Mapping
from typing import Any

NONE_IS_RUN = "and penstock runs none that comes with a model or a tokenizer"


def code_of_model(config: Mapping[str, Any]) -> str | None:
    """What a model's config.json asks to be run, if anything: classes of its folder, or kernels of a repository.

    Asked of the file itself. Where the library knows the architecture by that name too, it takes its own class without
    a word, and that is another than the one that the weights were made with.
    """
    implementation = config.get("attn_implementation", config.get("_attn_implementation"))
    kernels = implementation.values() if isinstance(implementation, Mapping) else [implementation]
    asked = [*_named(config.get("auto_map")), *(str(name) for name in kernels if "/" in str(name))]
    return asked[0] if asked else None


def code_of_tokenizer(config: Mapping[str, Any]) -> str | None:
    """As `code_of_model`, of a tokenizer_config.json."""
    return next(iter(_named(config.get("auto_map"))), None)


def _named(auto_map: Any) -> list[str]:
    entries = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    return [str(entry) for entry in entries if entry]
