"""Where labelled texts come from: files in the usual forms, the hub's data sets, Python objects, generated reviews."""

from penstock.engine.data.sources.base import PLAIN_READING, BadRow, Reading, Rows, Source
from penstock.engine.data.sources.memory import MemorySource
from penstock.engine.data.sources.open import open_source, open_sources

__all__ = ["PLAIN_READING", "BadRow", "MemorySource", "Reading", "Rows", "Source", "open_source", "open_sources"]
