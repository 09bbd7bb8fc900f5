"""Short texts whose label follows from a word or two among filler."""

import csv
import random
from pathlib import Path

WORDS = {"bad": "awful dull broken", "fair": "plain usual middling", "good": "lovely bright superb"}
FILLER = "the a film story actor scene music plot it was and with"


def write_texts(file: Path, rows: int, seed: int) -> Path:
    """A CSV file with the columns text and label, three classes in turn."""
    draw = random.Random(seed)
    with open(file, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        for number in range(rows):
            label = list(WORDS)[number % 3]
            words = draw.choices(FILLER.split(), k=draw.randrange(0, 14)) + draw.choices(WORDS[label].split(), k=2)
            draw.shuffle(words)
            writer.writerow([" ".join(words), label])
    return file
