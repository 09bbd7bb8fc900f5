"""`prepare` as steps of datatrove pipelines. Needs `pip install 'penstock[datatrove]'`.

Three pipelines, each depending on the one before: `Begin` and `Finalize` in one task, `WriteShards` in any number. The
store is, to the byte, the one that `prepare` makes.
"""

import os
from collections.abc import Sequence
from typing import Any

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError:
    from penstock.engine.errors import ConfigError

    raise ConfigError("preparing with datatrove needs datatrove: pip install 'penstock[datatrove]'") from None

from penstock.engine.data.parts import finalize, write_part
from penstock.engine.data.prepare import begin


class Begin(PipelineStep):
    """Surveys the sources and writes down what is to be made.

    Args:
        sources, out: reachable by the same absolute names from every machine.
        settings: as of `penstock.engine.data.prepare.prepare`.
    """

    name = "survey"
    type = "penstock"

    def __init__(self, sources: str | Sequence[str], out: str | os.PathLike[str], **settings: Any) -> None:
        super().__init__()
        self.sources = sources
        self.out = out
        self.settings = {"progress": False, **settings}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        with self.track_time("task"):
            begin(self.sources, self.out, **self.settings)
        return data


class WriteShards(PipelineStep):
    """Makes the rank's share of the shards."""

    name = "shards"
    type = "penstock"

    def __init__(self, out: str | os.PathLike[str]) -> None:
        super().__init__()
        self.out = out

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        with self.track_time("task"):
            self.stat_update("shards", value=write_part(self.out, (rank, world_size)), unit="task")
        return data


class Finalize(PipelineStep):
    """Joins the shards into the store."""

    name = "store"
    type = "penstock"

    def __init__(self, out: str | os.PathLike[str]) -> None:
        super().__init__()
        self.out = out

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        with self.track_time("task"):
            finalize(self.out)
        return data
