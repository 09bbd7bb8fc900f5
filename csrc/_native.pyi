"""The compiled core; its functions document themselves (`help(penstock._native)`)."""

from typing import Any

def __getattr__(name: str) -> Any: ...
