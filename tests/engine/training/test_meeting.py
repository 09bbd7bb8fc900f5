"""The processes of one start find each other in a store that remembers those before them."""

import random
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from penstock.engine.errors import RankError
from penstock.engine.training.distributed import answering
from penstock.engine.training.meeting import agreed_name


@pytest.mark.parametrize("size", [2, 3, 5])
def test_each_start_agrees_on_a_name_of_its_own(size):
    store, draw = dist.HashStore(), random.Random(size)
    store.set_timeout(timedelta(seconds=20))
    names = []
    for start in range(8):
        found = {}

        def join(rank, pause, found=found):
            time.sleep(pause)
            found[rank] = agreed_name(store, rank, size, 20.0)

        # in any order: the one who finds what the last start left behind among them
        pauses = [draw.choice((0.0, 0.05)) for _ in range(size)]
        threads = [threading.Thread(target=join, args=(rank, pauses[rank])) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == size
        assert len(set(found.values())) == 1, start
        names.append(found[0])
        # another start, of which one process was killed before it came
        if start % 2:
            store.set("penstock/start", "of one that is gone")
    assert len(set(names)) == len(names)


def test_a_first_process_that_does_not_come_is_said_in_a_line():
    store = dist.HashStore()
    store.set("penstock/start", "of one that is gone")
    with pytest.raises(RankError, match=r"did not answer within 0\.2 s \(training\.rank_timeout\)"), answering(0.2):
        agreed_name(store, 1, 2, 0.2)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: SO_ERROR", "cannot be reached"),
        ("[pair.cc:553] Connection closed by peer [127.0.0.1]:26024", "has ended: its own message says why"),
        ("[unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation to complete", "did not answer within 6 s"),
    ],
)
def test_what_gloo_says_is_told_apart(said, words):
    with pytest.raises(RankError, match=words), answering(6.0):
        raise RuntimeError(said)
