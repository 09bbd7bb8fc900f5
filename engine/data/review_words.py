"""The vocabulary of the generated reviews: what is reviewed, and words by how much they praise or blame.

Words stand most frequent first; they are drawn with a weight of 1 / (rank + 3): some are met rarely, as in real text.
"""

from dataclasses import dataclass

Scale = dict[int, tuple[str, ...]]  # value in -2..2 -> words


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GENERAL: Scale = {
    2: _words(
        "excellent great wonderful fantastic amazing superb outstanding brilliant perfect terrific exceptional "
        "fabulous flawless stunning magnificent marvelous impeccable phenomenal splendid first-rate remarkable "
        "sublime stellar "
        "faultless exquisite glorious top-notch"
    ),
    1: _words(
        "good nice decent pleasant solid lovely enjoyable satisfying likeable respectable agreeable commendable "
        "appealing worthwhile praiseworthy creditable gratifying"
    ),
    0: _words("okay average acceptable ordinary passable unremarkable middling standard tolerable so-so"),
    -1: _words(
        "disappointing poor mediocre weak dull underwhelming forgettable unimpressive lackluster shabby flawed sloppy "
        "tedious substandard tired careless inferior unsatisfying"
    ),
    -2: _words(
        "terrible awful horrible dreadful appalling atrocious abysmal disgraceful horrendous pathetic miserable "
        "ghastly unbearable disastrous lousy hopeless dire deplorable shocking inexcusable wretched dismal"
    ),
}


def _scale(plus2: str, plus1: str, minus1: str, minus2: str) -> Scale:
    return {
        2: _words(plus2),
        1: _words(plus1),
        0: (),
        -1: _words(minus1),
        -2: _words(minus2),
    }


FOOD = _scale(
    "delicious mouthwatering heavenly divine scrumptious",
    "tasty fresh flavorful tender crisp appetizing",
    "bland soggy greasy overcooked stale salty lukewarm",
    "inedible disgusting rancid revolting vile",
)
PEOPLE = _scale(
    "delightful gracious attentive warm-hearted",
    "friendly polite helpful prompt courteous",
    "slow inattentive clumsy forgetful distracted",
    "rude hostile insulting incompetent arrogant",
)
PLACE = _scale(
    "gorgeous spotless enchanting breathtaking",
    "cozy clean bright comfortable welcoming",
    "cramped noisy dingy stuffy dated",
    "filthy squalid disgusting grimy",
)
DEVICE = _scale(
    "superior rock-solid unbeatable world-class",
    "sturdy responsive dependable handy accurate",
    "flimsy sluggish clunky unreliable fiddly",
    "useless worthless unusable defective dangerous",
)
MONEY = _scale(
    "unbeatable generous", "fair reasonable modest", "steep inflated excessive", "outrageous extortionate scandalous"
)


@dataclass(frozen=True)
class Aspect:
    noun: str
    scale: Scale
    weight: float  # how much it counts for the stars, unless the sentence says otherwise


@dataclass(frozen=True)
class Domain:
    things: tuple[str, ...]
    aspects: tuple[Aspect, ...]
    neutral: tuple[str, ...]  # sentences that say nothing about quality


def _aspects(nouns: str, scale: Scale, weight: float) -> tuple[Aspect, ...]:
    return tuple(Aspect(noun.strip(), scale, weight) for noun in nouns.split(","))


DOMAINS = (
    Domain(
        things=("restaurant", "bistro", "diner", "cafe", "pizzeria", "steakhouse", "tavern", "noodle bar", "trattoria"),
        aspects=(
            *_aspects(
                "food, soup, pasta, steak, salmon, dessert, curry, bread, burger, risotto, coffee, cheesecake",
                FOOD,
                1.5,
            ),
            *_aspects("service, waiter, waitress, staff, bartender, hostess", PEOPLE, 1.0),
            *_aspects("atmosphere, dining room, terrace, decor, music, bathroom", PLACE, 0.6),
            *_aspects("price, bill, corkage fee", MONEY, 0.6),
        ),
        neutral=(
            "We had a table by the window.",
            "They take cards and cash.",
            "There is a bus stop across the street.",
            "We came on a Tuesday evening with four people.",
            "The menu changes with the season.",
            "I ordered the special of the day.",
        ),
    ),
    Domain(
        things=(
            "laptop",
            "phone",
            "camera",
            "vacuum cleaner",
            "printer",
            "blender",
            "tablet",
            "speaker",
            "drill",
            "toaster",
        ),
        aspects=(
            *_aspects("battery, screen, motor, sound, picture quality, software, hardware, performance", DEVICE, 1.5),
            *_aspects("keyboard, power cord, remote control, casing, design, manual, carrying case", DEVICE, 0.7),
            *_aspects("customer support, seller, repair team, help desk", PEOPLE, 0.9),
            *_aspects("price, shipping cost, warranty fee", MONEY, 0.6),
        ),
        neutral=(
            "It came in a brown cardboard box.",
            "I use it about twice a week.",
            "The color is dark gray.",
            "I bought it to replace one from 2009.",
            "It was delivered on a Friday.",
            "There are three buttons on the side.",
        ),
    ),
    Domain(
        things=("hotel", "hostel", "guesthouse", "resort", "motel", "inn", "lodge"),
        aspects=(
            *_aspects("room, bed, suite, bathroom, balcony, view", PLACE, 1.5),
            *_aspects("front desk, concierge, housekeeping, manager, porter", PEOPLE, 1.0),
            *_aspects("breakfast, buffet, room service dinner, minibar snack", FOOD, 0.8),
            *_aspects("rate, parking fee, price", MONEY, 0.6),
        ),
        neutral=(
            "We stayed for three nights in October.",
            "Our room was on the second floor.",
            "Check-in starts at three in the afternoon.",
            "The building has two elevators.",
            "It is a short walk from the station.",
            "We arrived late because of the traffic.",
        ),
    ),
)

INTENSIFIERS = (
    "really",
    "very",
    "extremely",
    "absolutely",
    "truly",
    "incredibly",
    "utterly",
    "thoroughly",
    "remarkably",
)
DIMINISHERS = ("fairly", "somewhat", "rather", "pretty", "reasonably", "a little", "mildly")
OTHERS = ("my wife", "my husband", "my sister", "our neighbor", "a colleague", "my brother", "the guidebook", "my boss")
RIVALS = ("the one next door", "the one I had before", "its rival", "last year's choice", "the one across town")
VERDICTS = {
    2: (
        "I recommend it without hesitation.",
        "I would return in a heartbeat.",
        "I could not be happier.",
        "Five stars are not enough.",
        "It blew me away.",
        "It exceeded every expectation.",
        "I cannot praise it enough.",
        "It is worth every penny and more.",
    ),
    1: (
        "On balance I am pleased.",
        "I would probably choose it again.",
        "Overall I enjoyed it.",
        "It does the job and does it well enough.",
        "I left in a good mood.",
        "There is more to like than to complain about.",
    ),
    0: (
        "I have no strong feelings either way.",
        "It is neither here nor there.",
        "Take it or leave it.",
        "It was fine, nothing more and nothing less.",
        "You get what you pay for.",
    ),
    -1: (
        "I doubt that I would choose it again.",
        "On balance I am let down.",
        "I had hoped for more.",
        "It left a lot to be desired.",
        "There is more to complain about than to like.",
        "It did not live up to the hype.",
    ),
    -2: (
        "Avoid it at all costs.",
        "I want my money back.",
        "Never again.",
        "Save yourself the trouble and stay away.",
        "I regret every cent of it.",
        "It could not have gone worse.",
        "It was a complete waste of time and money.",
        "I would not wish it on my worst enemy.",
    ),
}
MOODS = (  # feelings that have nothing to do with what is reviewed
    "It was a beautiful sunny day.",
    "I had an awful week at work before this.",
    "The drive there was horrible because of the rain.",
    "My daughter had just won a wonderful prize.",
    "We were celebrating a perfect exam result.",
    "My old one had died a miserable death.",
    "The weather was dreadful all weekend.",
    "I read about it in an excellent magazine.",
    "A terrible flu had kept me at home for days.",
    "We had seen a fantastic movie just before.",
)
