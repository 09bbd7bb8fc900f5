"""Several ranks of a run, each a process of its own, forked from one that has imported everything already."""

import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

# a server with no threads to lose in a fork
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["penstock.engine.training.train", "torch.distributed.fsdp", "peft"])


def run_ranks(size: int, action: Callable[..., Any], *arguments: Any, timeout: float = 300.0) -> list[Any]:
    """What `action(*arguments)`, a function of a module, returns in each of `size` ranks joined by gloo.

    Raises:
        AssertionError: it fails in one of them, or they are not done in `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            here, there = _CONTEXT.Pipe(duplex=False)
            place = (rank, size, str(Path(folder) / "meet"))
            process = _CONTEXT.Process(target=_serve, args=(place, there, action, arguments), daemon=True)
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        results: dict[int, Any] = {}
        try:
            while len(results) < size:
                waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
                ready = multiprocessing.connection.wait(waiting, timeout)
                assert ready, f"ranks {set(range(size)) - results.keys()} are not done in {timeout:g} s"
                for pipe in ready:
                    rank = pipes.index(pipe)
                    try:
                        error, results[rank] = pipe.recv()
                    except EOFError:
                        processes[rank].join()
                        crash = Path(folder) / f"crash-{rank}"
                        where = crash.read_text() if crash.exists() else ""
                        raise AssertionError(f"rank {rank} ended with {processes[rank].exitcode}: {where}") from None
                    assert error is None, f"rank {rank}: {error}"
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [results[rank] for rank in range(size)]


def _serve(place: tuple[int, int, str], pipe: Any, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    rank, size, file = place
    crash = Path(file).with_name(f"crash-{rank}").open("w")
    faulthandler.enable(crash)  # a segmentation fault tells where it was
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    try:
        if size > 1:
            how: Any = {"init_method": f"file://{file}", "timeout": timedelta(seconds=60)}
            dist.init_process_group("gloo", rank=rank, world_size=size, **how)
        pipe.send((None, action(*arguments)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
    finally:
        os._exit(0)  # the others may still be at work with this one's sockets, or wait for them
