"""A store of whole texts, cut by the loader, gives token for token what `prepare` stores with that limit."""

import itertools
import pickle

import numpy as np
import pytest
from subtested import as_subtests
from tokenizers import processors

from penstock._native import Shards
from penstock.engine.data.cut import Cut
from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import TRUNCATIONS, load_tokenizer
from penstock.engine.errors import ConfigError, RunError

WORDS = ["the", "film", "was", "not", "very", "good", "but", "its", "end", "made", "me", "laugh"]
TEXTS = [" ".join(WORDS[(i * 5 + j) % len(WORDS)] for j in range(length)) for i, length in enumerate([*range(24), 60])]
ROWS = [(text, number % 2) for number, text in enumerate(TEXTS)]
# special tokens before and after a text
SPECIALS = {"both": (1, 1), "none": (0, 0), "front": (1, 0), "behind": (0, 2)}
PLAN = PlanParameters(tokens_per_batch=40)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, str]:
    """Folders of a tokenizer with special tokens in different places."""
    folder = tmp_path_factory.mktemp("tokenizers")
    learned = prepare(ROWS, folder / "learned", tokenizer="train:wordpiece:200", progress=False).tokenizer()
    named = [("[CLS]", learned.cls_token_id), ("[SEP]", learned.sep_token_id)]
    for name, (before, behind) in SPECIALS.items():
        template = " ".join(["[CLS]"] * before + ["$A"] + ["[SEP]"] * behind)
        learned.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
        learned.save_pretrained(folder / name)
    return {name: str(folder / name) for name in SPECIALS}


@pytest.fixture(scope="module")
def made(tokenizers, tmp_path_factory):
    """Stores of the texts by tokenizer, limit and truncation, each prepared once."""
    folder, stores = tmp_path_factory.mktemp("stores"), {}

    def make(specials: str, max_length: int, truncation: str) -> Store:
        key = f"{specials}-{max_length}-{truncation}"
        if key not in stores:
            options = {"max_length": max_length, "truncation": truncation, "rows_per_shard": 9, "progress": False}
            stores[key] = prepare(ROWS, folder / key, tokenizer=tokenizers[specials], **options)
        return stores[key]

    return make


def batches(store: Store, **options) -> list[tuple[list[int], list[int], list[int]]]:
    loader = Loader(store, seed=3, parameters=PLAN, **options)
    return [
        (batch.tokens.ids.tolist(), batch.tokens.cu_seqlens.tolist(), batch.tokens.values.tolist())
        for batch in loader.batches()
    ]


def rows(store: Store) -> list[list[int]]:
    return [store.tokens(row).tolist() for row in range(store.num_examples)]


WHOLE = 100  # more than any text has
LENGTHS = [1, 2, 5, 23, 24, 59, 60]  # tokens of the text alone: the shortest, near many texts', near the longest's


@pytest.mark.slow
@as_subtests("truncation, specials", itertools.product(TRUNCATIONS, SPECIALS))
def test_a_cut_is_what_prepare_stores(made, specials, truncation):
    for length in LENGTHS:
        limit = length + sum(SPECIALS[specials])
        expected = made(specials, limit, truncation)
        for kept, kept_by in [(WHOLE, "head"), (WHOLE, truncation), (min(limit + 7, 90), truncation)]:
            cut = made(specials, kept, kept_by).cut_to(limit, truncation)
            assert rows(cut) == rows(expected), (limit, kept, kept_by)
            assert cut.lengths.tolist() == expected.lengths.tolist()
            assert (cut.num_tokens, cut.max_length, cut.truncation) == (expected.num_tokens, limit, truncation)
            assert batches(cut) == batches(expected)
            assert Loader(cut, seed=3, parameters=PLAN).plan().statistics() == (
                Loader(expected, seed=3, parameters=PLAN).plan().statistics()
            )


def test_its_own_truncation_unless_another_is_asked_for(made):
    for own in TRUNCATIONS:
        assert rows(made("both", WHOLE, own).cut_to(9)) == rows(made("both", 9, own))


def test_read_by_system_calls_and_by_another_process(made):
    store = made("both", WHOLE, "head")
    expected = rows(store.cut_to(11, "head+tail"))
    other = Store.open(store.path, reader="pread").cut_to(11, "head+tail")
    assert rows(other) == expected
    assert rows(pickle.loads(pickle.dumps(other))) == expected
    assert pickle.loads(pickle.dumps(store)).cut is None


def test_a_cut_longer_than_all_rows_changes_nothing(made):
    store = made("both", WHOLE, "head")
    longest = int(store.lengths.max())
    assert store.cut_to(WHOLE) is store
    assert store.cut_to(WHOLE + 5, "tail") is store
    loose = store.cut_to(longest, "tail")
    assert (loose.cut, loose.max_length, loose.truncation) == (None, longest, "tail")
    names = {Loader(each, seed=3, parameters=PLAN).fingerprint for each in (store, loose)}
    assert len(names) == 1, "a run goes on with it"
    assert store.cut_to(5).cut_to(WHOLE).lengths.tolist() == store.lengths.tolist()
    assert store.cut_to(5).cut_to(9).lengths.tolist() == store.cut_to(9).lengths.tolist()


def test_a_loaders_state_knows_the_cut(made):
    store = made("both", WHOLE, "head")
    cuts = [store, store.cut_to(9), store.cut_to(10), store.cut_to(9, "tail"), store.cut_to(9, "head+tail")]
    loaders = [Loader(cut, seed=3, parameters=PLAN) for cut in cuts]
    assert len({loader.fingerprint for loader in loaders}) == len(cuts)
    for loader in loaders:
        assert loader.plan().fingerprint == loader.fingerprint
    with pytest.raises(RunError, match="the cut must be those"):
        loaders[0].load_state_dict(loaders[1].state_dict())


def test_a_cut_without_room_for_text_is_refused(made):
    for specials, (before, behind) in SPECIALS.items():
        if before + behind:
            with pytest.raises(ConfigError, match="no room for text"):
                made(specials, WHOLE, "head").cut_to(before + behind)


def test_pairs_are_cut_when_they_are_prepared(tmp_path, made):
    tokenizer = load_tokenizer(str(made("both", WHOLE, "head").path / "tokenizer"))
    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.sep_token_id), ("[CLS]", tokenizer.cls_token_id)
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    pairs = [((text, TEXTS[number - 1]), label) for number, (text, label) in enumerate(ROWS)]
    store = prepare(pairs, tmp_path / "pairs", tokenizer=str(tmp_path / "tokenizer"), progress=False)
    longest = int(store.lengths.max())
    assert store.cut_to(longest).lengths.tolist() == store.lengths.tolist()
    with pytest.raises(ConfigError, match=f"prepare the store with --max-length {longest - 1}"):
        store.cut_to(longest - 1)


def test_a_native_cut():
    for width, kind in ((2, np.uint16), (4, np.uint32)):
        shards = Shards(width, 100)
        shards.add_mapped("a", np.arange(12, dtype=kind), np.array([0, 7, 7, 12]))
        for head, tail in [(3, 2), (5, 0), (0, 5), (2, 5), (7, 0), (6, 1), (0, 0), (2**62, 2**62 - 1)]:
            whole = [list(range(7)), [], list(range(7, 12))]
            expected = [[*row[:head], *row[len(row) - tail :]] if len(row) > head + tail else row for row in whole]
            total = sum(map(len, expected))
            out, bounds, labels = np.empty(total, np.int32), np.empty(4, np.int32), np.zeros(3, np.int64)
            memory = out.ctypes.data, total, bounds.ctypes.data, labels.ctypes.data
            shards.gather(np.arange(3), np.zeros(3, np.int64), *memory, (head, tail))
            assert out.tolist() == [token for row in expected for token in row]
            assert bounds.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
        for bad in [(-1, 2), (2, -1), (2**63 - 1, 1)]:
            with pytest.raises(ValueError, match="head and tail"):
                shards.gather(np.arange(3), np.zeros(3, np.int64), *memory, bad)
    assert Cut(3, 2).lengths(np.array([0, 5, 6], np.int32)).tolist() == [0, 5, 5]
