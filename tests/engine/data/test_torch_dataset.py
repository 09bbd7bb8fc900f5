"""The loader as a torch data set."""

import json

import pytest
from subtested import as_subtests
from torch.utils.data import DataLoader

from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.torch_dataset import BatchDataset
from penstock.engine.errors import ConfigError


def make(store, world_size: int = 2, rank: int = 1, **options) -> BatchDataset:
    parameters = PlanParameters(tokens_per_batch=100, batches_per_step=4)
    return BatchDataset(Loader(store, seed=3, parameters=parameters, world_size=world_size, rank=rank), **options)


def rows(batches) -> list[list[int]]:
    return [batch.tokens.ids.tolist() for batch in batches]


def test_through_a_data_loader(store):
    expected = rows(make(store).loader.batches())
    assert rows(DataLoader(make(store), batch_size=None)) == expected
    assert rows(DataLoader(make(store), batch_size=None, num_workers=1)) == expected
    assert len(DataLoader(make(store), batch_size=None)) == len(expected)
    with pytest.raises(ConfigError, match="2 workers"):
        list(DataLoader(make(store), batch_size=None, num_workers=2))


@pytest.mark.slow
@as_subtests("world_size, rank", [(size, rank) for size in (1, 2, 4) for rank in range(size)])
def test_going_on_after_every_batch(store, world_size, rank):
    """And over the end of an epoch; every rank's batches are its own of the one global stream."""
    parts = world_size, rank
    straight = make(store, *parts)
    stream = rows(straight) + rows(straight)
    whole = make(store, 1, 0)
    assert stream == (rows(whole) + rows(whole))[rank::world_size]
    dataset = make(store, *parts)
    seen, states = [], [dataset.state_dict()]
    for _ in range(2):
        for batch in dataset:
            seen += rows([batch])
            states.append(json.loads(json.dumps(dataset.state_dict())))
    assert seen == stream
    for done, state in enumerate(states):
        resumed = make(store, *parts)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = [row for _ in range(resumed.loader.epoch, 2) for row in rows(resumed)]
        assert stream[:done] + rest == stream


def test_stateful_data_loader(store):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    loader = stateful.StatefulDataLoader(make(store), batch_size=None)
    stream = rows(loader)
    loader = stateful.StatefulDataLoader(make(store), batch_size=None)
    iterator = iter(loader)
    seen = rows(next(iterator) for _ in range(3))
    resumed = stateful.StatefulDataLoader(make(store), batch_size=None)
    resumed.load_state_dict(loader.state_dict())
    assert seen + rows(resumed) == stream


def test_padded(store):
    ragged, padded = list(make(store)), list(make(store, pad_token_id=1))
    for batch, dictionary in zip(ragged, padded, strict=True):
        lengths = batch.tokens.lengths.tolist()
        assert dictionary["attention_mask"].sum(1).tolist() == lengths
        for row, length, tokens in zip(
            dictionary["input_ids"].tolist(), lengths, batch.tokens.values.split(lengths), strict=True
        ):
            assert row == tokens.tolist() + [1] * (max(lengths) - length)
        assert dictionary["labels"].tolist() == batch.labels.tolist()
