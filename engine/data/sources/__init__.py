"""Where labelled texts come from: files in the usual forms, the hub's data sets, generated reviews."""

from penstock.engine.data.sources.base import BadRow, Rows, Source
from penstock.engine.data.sources.open import open_source, open_sources

__all__ = ["BadRow", "Rows", "Source", "open_source", "open_sources"]
