"""What a release of penstock needs besides: penstock-kernels, of the same version, which a checkout builds itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Dependencies:
    """A provider of dynamic metadata (PEP 808): adds to the dependencies in pyproject.toml."""

    making_sdist = False

    def build_state(self, state: str) -> None:
        """Told before `dynamic_metadata` what is being built."""
        self.making_sdist = state == "sdist"

    def dynamic_metadata(self, settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, list[str]]:
        """The dependencies to add: those of an sdist, which PKG-INFO marks once it is unpacked, and of its wheel."""
        released = self.making_sdist or Path("PKG-INFO").is_file()
        return {"dependencies": [f"penstock-kernels=={project['version']}"] if released else []}
