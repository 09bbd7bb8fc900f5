"""Generated titles in thousands of classes: short texts, as a catalogue or a ticket queue has them, to try things on.

Classes follow Zipf's law, so that most have few examples. A class has words of its own, of which a title holds two or
three; it shares some with its neighbour, and most words belong to none. One title in twenty is filed wrongly.
"""

import random
from collections.abc import Iterator
from functools import cache
from itertools import accumulate

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u")]
_WORDS = 30_000  # of the vocabulary
_OWN_WORDS = 24  # of a class
_OWN, _NEIGHBOURS = 0.25, 0.08  # shares of a title's words
_NOISE = 0.05
_LENGTHS = range(4, 17)  # words


def generate_titles(n: int, seed: int = 0, classes: int = 2_500) -> Iterator[tuple[str, int]]:
    """Yield `n` pairs of a title and its class, 0 to `classes` - 1, the frequent ones first.

    Row `i` depends on `seed`, `i` and `classes` alone; what the classes' words are, on none of them: other seeds give
    test sets.
    """
    by_class = list(accumulate(1 / (rank + 1) for rank in range(classes)))
    by_word = list(accumulate(1 / (rank + 5) for rank in range(_WORDS)))
    within = list(accumulate(1 / (rank + 2) for rank in range(_OWN_WORDS)))
    every, numbers, places = range(_WORDS), range(classes), range(_OWN_WORDS)
    for row in range(n):
        rng = random.Random(f"penstock titles {seed} {row}")
        label = rng.choices(numbers, cum_weights=by_class)[0]
        words = []
        for _ in range(rng.choice(_LENGTHS)):
            whose = rng.random()
            if whose < _OWN + _NEIGHBOURS:
                owner = label if whose < _OWN else (label ^ 1) % classes
                words.append(_own_words(owner)[rng.choices(places, cum_weights=within)[0]])
            else:
                words.append(_word(rng.choices(every, cum_weights=by_word)[0]))
        if rng.random() < _NOISE:
            label = rng.choices(numbers, cum_weights=by_class)[0]
        yield " ".join(words), label


@cache
def _own_words(label: int) -> list[str]:
    rng = random.Random(f"penstock titles' class {label}")
    return [_word(number) for number in rng.sample(range(200, _WORDS), _OWN_WORDS)]


@cache
def _word(number: int) -> str:
    """Two syllables for the frequent ones, three for the others; no two numbers have the same."""
    count = len(_SYLLABLES)
    if number < count * count:
        return _SYLLABLES[number // count] + _SYLLABLES[number % count]
    number -= count * count
    return _SYLLABLES[number // count**2 % count] + _SYLLABLES[number // count % count] + _SYLLABLES[number % count]
