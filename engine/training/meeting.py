"""Where the processes of one start meet under torchrun, whose store outlives restarts.

torch puts the addresses of processes there under names that are the same in each start: a process that is quicker than
another one finds the address of that one's predecessor, which was killed. So each start has names of its own here.
"""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

_START = "penstock/start"
_PAUSE = 0.02  # seconds between two looks


def is_under_torchrun() -> bool:
    """Whether there is a store of torchrun's, rather than one that the first process opens."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def place_of_this_start(timeout: float) -> dict[str, Any]:
    """What `init_process_group` takes: rank, world_size and, as its store, the part of torchrun's that this start's
    processes alone know.

    Raises:
        RuntimeError: one of them did not come within `timeout` seconds.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
    name = agreed_name(store, rank, size, timeout)
    return {"rank": rank, "world_size": size, "store": PrefixStore(name, store)}


def agreed_name(store: Store, rank: int, size: int, timeout: float) -> str:
    """A name that the first process makes up. The others cannot know at once whether one that they find is that of an
    earlier start: they take it when the first process has answered each by the mark that it left."""
    if rank == 0:
        name = uuid.uuid4().hex
        store.set(_START, name)
        for other in range(1, size):
            mark = store.get(_place(name, other)).decode()
            store.set(_place(name, other, mark), "")
        return name
    mark, deadline = uuid.uuid4().hex, time.monotonic() + timeout
    while time.monotonic() < deadline:
        name = store.get(_START).decode()
        store.set(_place(name, rank), mark)
        if store.check([_place(name, rank, mark)]):
            return name
        time.sleep(_PAUSE)
    raise RuntimeError(f"timed out: the first process did not come within {timeout:g} s")


def _place(name: str, rank: int, *mark: str) -> str:
    return "/".join(("penstock", name, str(rank), *mark))
