import hashlib
import math
import re
from collections import Counter
from itertools import islice

import pytest

from penstock.engine.data.review_words import GENERAL
from penstock.engine.data.reviews import MAX_SENTENCES, STARS, generate_reviews


def test_a_row_depends_on_the_seed_and_its_number_alone():
    long = list(generate_reviews(300, seed=3))
    assert list(generate_reviews(40, seed=3)) == long[:40]
    assert list(generate_reviews(300, seed=4)) != long
    assert list(generate_reviews(0)) == []


def test_rows_are_streamed():
    assert len(list(islice(generate_reviews(10**12), 3))) == 3


def test_the_text_is_pinned():
    """A study is only comparable with another one if both saw the same reviews."""
    rows = list(generate_reviews(200, seed=0))
    assert rows[0] == ("Not that it matters to me, but I would not call the burger nice. The bathroom was cozy.", 4)
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "82c735873c8e7d13"


def test_labels_lengths_and_texts_vary():
    rows = list(generate_reviews(3000, seed=1))
    stars = Counter(label for _, label in rows)
    assert set(stars) == set(STARS)
    assert min(stars.values()) > 0.12 * len(rows)
    sentences = [len(re.findall(r"[.!?](?: |$)", text)) for text, _ in rows]
    assert min(sentences) == 1
    assert MAX_SENTENCES * 0.8 < max(sentences) <= 2 * MAX_SENTENCES
    assert len({text for text, _ in rows}) > 0.99 * len(rows)
    assert not {text for text, _ in rows} & {text for text, _ in generate_reviews(1000, seed=2) if len(text) > 80}
    assert all("{" not in text and "  " not in text and text == text.strip() for text, _ in rows)


def naive_bayes_accuracy(train, test) -> float:
    def words(text):
        return set(re.findall(r"[a-z'-]+", text.lower()))

    stars = Counter(label for _, label in train)
    counts = {star: Counter(word for text, label in train if label == star for word in words(text)) for star in STARS}
    totals = {star: sum(counts[star].values()) + 1000 for star in STARS}

    def score(star, found):
        return math.log(stars[star]) + sum(math.log((counts[star][word] + 1) / totals[star]) for word in found)

    return sum(max(STARS, key=lambda star: score(star, words(text))) == label for text, label in test) / len(test)


def test_word_counts_learn_something_but_not_the_task():
    train, test = list(generate_reviews(4000, seed=0)), list(generate_reviews(1000, seed=1))
    few, many = naive_bayes_accuracy(train[:100], test), naive_bayes_accuracy(train, test)
    assert 0.2 < few < many - 0.05
    assert 0.35 < many < 0.6


@pytest.mark.slow
def test_order_decides_where_words_do_not():
    """Reviews of one sentence that blames or praises in a word, and means praise by it: the first five of each."""
    phrases = (("anything but", -2), ("nothing short of", 2))
    meant = {phrase: re.compile(rf"^[^.,;]*{phrase} ({'|'.join(GENERAL[value])})[.!]$") for phrase, value in phrases}
    labels = {phrase: [] for phrase in meant}
    for text, label in generate_reviews(40000, seed=5):
        for phrase, sentence in meant.items():
            if phrase in text and sentence.search(text):
                labels[phrase].append(label)
        if min(map(len, labels.values())) >= 5:
            break
    for found in labels.values():
        assert len(found) >= 5
        assert sum(label >= 4 for label in found) > 0.75 * len(found)
