"""Which packages are there for it; asked before anything slow is imported."""

import importlib.util

from penstock.engine.errors import ConfigError


def check_installed(*packages: str) -> None:
    """Raises ConfigError unless they are."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"penstock export onnx needs {package}: pip install 'penstock[onnx]'")
