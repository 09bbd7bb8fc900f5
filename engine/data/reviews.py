"""Generated English reviews with star ratings: text to try the whole line on where no data set is at hand.

The stars follow from what the sentences *mean*: every opinion has a value (-2 to 2) and a weight, and the weighted mean
decides. Words alone mislead: opinions are negated, conceded in a subordinate clause that hardly counts, attributed to
somebody else, compared with something worse, or about nothing that matters. So a model of word counts stays behind one
that reads in order. Five classes, as in the star ratings of the paper's data sets: degrees ("fairly good", "superb")
count, and errors between neighbours are common, which leaves room between a small and a large training set.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from penstock.engine.data.review_words import (
    DIMINISHERS,
    DOMAINS,
    GENERAL,
    INTENSIFIERS,
    MOODS,
    OTHERS,
    RIVALS,
    VERDICTS,
    Aspect,
    Domain,
)

STARS = (1, 2, 3, 4, 5)
MAX_SENTENCES = 15
THRESHOLDS = (-1.05, -0.35, 0.35, 1.05)  # of the weighted mean, between neighbouring stars
MINOR = 0.3  # an opinion of less weight decides nothing on its own
NEIGHBOUR_NOISE = 0.06  # share of reviews whose author gives one star more or fewer than the text says
RANDOM_NOISE = 0.02  # share whose stars have nothing to do with the text


@dataclass
class _Opinion:
    text: str
    value: float
    weight: float


@dataclass
class _Author:
    """One review's random choices: its domain and what the author thinks of it (`mood`, -2 to 2)."""

    rng: random.Random
    domain: Domain
    thing: str
    mood: float
    unused: list[Aspect] = field(default_factory=list)

    def aspect(self) -> Aspect:
        if not self.unused:
            self.unused = self.rng.sample(self.domain.aspects, len(self.domain.aspects))
        return self.unused.pop()

    def value(self) -> int:
        return max(-2, min(2, round(self.rng.gauss(self.mood, 0.75))))

    def word(self, aspect: Aspect, value: int) -> str:
        """An adjective of `value` in -2..2, the aspect's own or a general one."""
        own = aspect.scale[value]
        return _frequent_first(self.rng, own if own and self.rng.random() < 0.4 else GENERAL[value])


def _frequent_first(rng: random.Random, words: tuple[str, ...]) -> str:
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    return rng.choices(words, cum_weights=weights)[0]


def _clause(author: _Author, aspect: Aspect, value: int) -> tuple[str, float]:
    """A clause without its full stop about one aspect, that means about `value`, and what it means exactly."""
    rng, noun = author.rng, aspect.noun
    if value and rng.random() < 0.35:
        return _negated(author, aspect, value)
    word = author.word(aspect, value)
    degree = rng.random()
    if value and degree < 0.2:
        return f"the {noun} was {rng.choice(INTENSIFIERS)} {word}", value * 1.25
    if abs(value) == 1 and degree < 0.4:
        return f"the {noun} was {rng.choice(DIMINISHERS)} {word}", value * 0.6
    form = rng.choice(
        (
            "the {noun} was {word}",
            "the {noun} was {word}",
            "I found the {noun} {word}",
            "the {noun} turned out to be {word}",
            "the {noun} struck me as {word}",
            "we all thought the {noun} was {word}",
        )
    )
    return form.format(noun=noun, word=word), float(value)


def _negated(author: _Author, aspect: Aspect, value: int) -> tuple[str, float]:
    rng, noun = author.rng, aspect.noun
    if abs(value) == 2 and rng.random() < 0.35:  # looks like a negation, is an emphasis
        form = rng.choice(("the {noun} was nothing short of {word}", "the {noun} was nothing if not {word}"))
        return form.format(noun=noun, word=author.word(aspect, value)), float(value)
    strong = abs(value) == 2
    opposite = author.word(aspect, (-1 if value > 0 else 1) * rng.choice((1, 2)))
    forms = (
        (
            "the {noun} was anything but {word}",
            "the {noun} was not {word} by any stretch",
            "never was a {noun} less {word}",
        )
        if strong
        else (
            "the {noun} was not {word}",
            "the {noun} was not {word} at all",
            "the {noun} was hardly {word}",
            "I would not call the {noun} {word}",
            "nobody could say that the {noun} was {word}",
            "the {noun} was never {word}",
        )
    )
    return rng.choice(forms).format(noun=noun, word=opposite), value * 0.75


def _plain(author: _Author) -> _Opinion:
    aspect = author.aspect()
    text, value = _clause(author, aspect, author.value())
    return _Opinion(text, value, aspect.weight)


def _contrast(author: _Author) -> _Opinion:
    """Two clauses that disagree: the main clause decides, the conceded one counts little."""
    rng, main, conceded = author.rng, author.aspect(), author.aspect()
    value = author.value() or rng.choice((-1, 1))
    main_text, main_value = _clause(author, main, value)
    other_text, other_value = _clause(author, conceded, rng.choice((-1, -2)) if value > 0 else rng.choice((1, 2)))
    form = rng.choice(
        (
            "although {other}, {main}",
            "even though {other}, {main}",
            "{main}, although {other}",
            "{other}, but {main}",
            "{other}; however, {main}",
            "granted, {other}, yet {main}",
            "{main}, which made up for everything, even if {other}"
            if value > 0
            else "{main}, which ruined it for us, even if {other}",
        )
    )
    weight = main.weight + 0.2 * conceded.weight
    mean = (main.weight * main_value + 0.2 * conceded.weight * other_value) / weight
    return _Opinion(form.format(main=main_text, other=other_text), mean, weight)


def _attributed(author: _Author) -> _Opinion:
    """Somebody else's opinion, an expectation or a first impression, and whether it holds."""
    rng, aspect = author.rng, author.aspect()
    value = author.value() or rng.choice((-1, 1))
    holds = rng.random() < 0.35
    word = author.word(aspect, value if holds else -value)
    form, agree, disagree = rng.choice(
        (
            ("{other} called the {noun} {word}", "and I agree", "but I saw nothing of the kind"),
            ("{other} had told us that the {noun} was {word}", "and that was true", "which was simply not the case"),
            ("I had expected the {noun} to be {word}", "and so it was", "and it was quite the opposite"),
            ("the ads promised that the {noun} would be {word}", "and they kept their word", "and they lied"),
            ("at first the {noun} seemed {word}", "and it stayed that way", "and then it changed completely"),
        )
    )
    text = f"{form.format(other=rng.choice(OTHERS), noun=aspect.noun, word=word)}, {agree if holds else disagree}"
    return _Opinion(text, value * (1.0 if holds else 0.75), aspect.weight)


def _compared(author: _Author) -> _Opinion:
    rng, aspect = author.rng, author.aspect()
    value = author.value() or rng.choice((-1, 1))
    word = author.word(aspect, rng.choice((1, 2, -1, -2)))
    forms = (
        (
            "the {noun} was far better than that of {rival}, which was {word}",
            "the {noun} beats {rival} by a mile, and that one was {word}",
            "compared with the {word} {noun} of {rival}, this was a step up",
        )
        if value > 0
        else (
            "the {noun} was far worse than that of {rival}, which was {word}",
            "the {noun} cannot hold a candle to {rival}, and that one was {word}",
            "compared with the {word} {noun} of {rival}, this was a step down",
        )
    )
    return _Opinion(
        rng.choice(forms).format(noun=aspect.noun, rival=rng.choice(RIVALS), word=word),
        1.25 if value > 0 else -1.25,
        aspect.weight,
    )


def _weighted(author: _Author) -> _Opinion:
    """The author says how much the aspect counts."""
    rng, aspect = author.rng, author.aspect()
    matters = rng.random() < 0.6
    # what hardly matters need not agree with the rest
    text, value = _clause(author, aspect, author.value() if matters else rng.choice((-2, -1, 1, 2)))
    if matters:
        lead = rng.choice(("most importantly, ", "what counts most for me: ", "above all, ", "the main point is that "))
        return _Opinion(lead + text, value, 2.5)
    lead = rng.choice(
        ("not that it matters to me, but ", "a detail that I do not care about: ", "for what little it is worth, ")
    )
    return _Opinion(lead + text, value, 0.15)


_FORMS: tuple[tuple[Callable[[_Author], _Opinion], float], ...] = (
    (_plain, 0.40),
    (_contrast, 0.27),
    (_attributed, 0.13),
    (_compared, 0.08),
    (_weighted, 0.12),
)


def _review(rng: random.Random) -> tuple[str, int]:
    domain = rng.choice(DOMAINS)
    author = _Author(rng, domain, rng.choice(domain.things), mood=rng.choice((-1.7, -0.85, 0.0, 0.85, 1.7)))
    count = min(MAX_SENTENCES, 1 + int(rng.expovariate(1 / 2.4)))
    opinions = [
        form(author) for form in rng.choices([f for f, _ in _FORMS], weights=[weight for _, weight in _FORMS], k=count)
    ]
    if all(opinion.weight < MINOR for opinion in opinions):
        opinions.append(_plain(author))
    if count > 1 and rng.random() < 0.3:
        opinions[-1] = _Opinion(rng.choice(VERDICTS[value := author.value()]), value, 2.0)
    sentences = [_sentence(opinion.text) for opinion in opinions]
    if rng.random() < 0.3:
        sentences.insert(0, f"This {author.thing} was new to me.")
    for _ in range(sum(rng.random() < 0.12 for _ in range(count))):
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(domain.neutral + MOODS))
    mean = sum(o.value * o.weight for o in opinions) / sum(o.weight for o in opinions)
    stars = 1 + sum(mean > threshold for threshold in THRESHOLDS)
    return _styled(rng, " ".join(sentences)), _noisy(rng, stars)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _styled(rng: random.Random, text: str) -> str:
    style = rng.random()
    if style < 0.1:
        return text.lower()
    return text.replace(".", "!") if style < 0.14 else text


def _noisy(rng: random.Random, stars: int) -> int:
    noise = rng.random()
    if noise < RANDOM_NOISE:
        return rng.choice(STARS)
    if noise < RANDOM_NOISE + NEIGHBOUR_NOISE:
        return rng.choice([star for star in (stars - 1, stars + 1) if star in STARS])
    return stars


def generate_reviews(n: int, seed: int = 0) -> Iterator[tuple[str, int]]:
    """Yield `n` pairs of a review's text and its stars, 1 to 5.

    Row `i` depends on `seed` and `i` alone, so a longer list starts with the shorter one.
    """
    for row in range(n):
        yield _review(random.Random(f"penstock reviews {seed} {row}"))
