"""`prepare` on a Ray cluster. Needs `pip install 'penstock[ray]'`."""

import os
from collections.abc import Sequence
from typing import Any

from penstock.engine.data.parts import finalize, write_part
from penstock.engine.data.prepare import begin
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError


def prepare_on_ray(
    sources: str | Sequence[str],
    out: str | os.PathLike[str],
    *,
    tasks: int | None = None,
    cpus_per_task: int = 1,
    **settings: Any,
) -> Store:
    """The store that `prepare(sources, out, **settings)` makes, to the byte, its shards made by tasks of Ray Data.

    The survey of the sources and the joining of the shards run here. Ray starts a task again when its worker or node
    dies; when all of this is interrupted, the same call resumes it.

    Args:
        sources, out: reachable by the same absolute names from every node.
        tasks: how many; by default one for each `cpus_per_task` of the cluster. More than there are shards are idle.
        cpus_per_task: processors that a task tokenizes with.
        settings: as of `prepare`.

    Raises:
        ConfigError: Ray is not installed.
        SourceError, TokenizerError, StoreError, DiskError: as of `prepare`; from a task they come in Ray's own.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("preparing on Ray needs Ray: pip install 'penstock[ray]'") from None
    begin(sources, out, **settings)
    if not ray.is_initialized():
        ray.init()
    count = tasks or max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus_per_task)
    folder = os.path.abspath(out)

    def make(row: dict[str, int]) -> dict[str, int]:
        os.environ["RAYON_NUM_THREADS"] = str(cpus_per_task)  # the tokenizers' threads
        return {"shards": write_part(folder, (row["id"], count))}

    ray.data.range(count, override_num_blocks=count).map(make, num_cpus=cpus_per_task).materialize()
    return finalize(out)
