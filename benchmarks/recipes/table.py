"""Shows what search.py found: each setting beside its family's recipe, and choices at the edge of what was tried.

python benchmarks/recipes/table.py > benchmarks/recipes/RESULTS.md
"""

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

Row = dict[str, str]
RESULTS = Path(__file__).parent / "results"
HEAD = """# Recipes: what was tried

Made by `table.py` from `results/*.csv`, which `search.py` writes. Every family has the same budget:
its recipe and seven changes of it, on the same subsets. All figures are of development rows, which
no subset holds and which are no test rows. In parentheses the gain over the recipe in points, with
its 95% interval: over the development rows, paired, or over the seeds, whichever is wider. **Bold**
lies beyond it; of this many comparisons some do by chance. Accuracies are means over the seeds that
a setting has; gains are over the same seeds. Since then a bag of fewer than 5,000 examples has 8
epochs in place of 4.
"""


def main() -> None:
    rows = [row for path in sorted(RESULTS.glob("*.csv")) for row in csv.DictReader(path.open(newline=""))]
    print(HEAD)
    for family in dict.fromkeys(row["family"] for row in rows):
        print("\n".join(section(family, [row for row in rows if row["family"] == family])), end="\n\n")
    if "--check" in sys.argv:
        sys.exit(any(edges(rows)))


def section(family: str, rows: Sequence[Row]) -> Iterator[str]:
    """A family's table, a line for each setting, two columns for each data set and size."""
    places = list(dict.fromkeys((row["data"], int(row["size"])) for row in rows))
    by = defaultdict(list)
    for row in rows:
        by[row["settings"], row["data"], int(row["size"])].append(row)
    yield f"## {family}\n"
    yield "| setting | " + " | ".join(f"{data}, {size:,}" for data, size in places) + " |"
    yield "|---" * (len(places) + 1) + "|"
    for settings in dict.fromkeys(row["settings"] for row in rows):
        cells = [_cell(by[settings, *place], settings) for place in places]
        yield f"| {settings or 'the recipe'} | " + " | ".join(cells) + " |"
    seconds, count = sum(float(row["cpu_seconds"]) for row in rows), len(rows)
    yield f"\n{count} trainings, {seconds:,.0f} CPU seconds."
    yield from (f"\n{line}" for line in edges(rows))


def _cell(rows: Sequence[Row], settings: str) -> str:
    if not rows:
        return "–"
    accuracy = sum(float(row["development_accuracy"]) for row in rows) / len(rows)
    text = f"{100 * accuracy:.1f}"
    if not settings:
        return text
    gain, half = interval(rows)
    if gain is None:
        return text
    shown = f"{100 * gain:+.1f}" + (f" ± {100 * half:.1f}" if half is not None else "")
    return f"{text} (**{shown}**)" if half is not None and abs(gain) > half else f"{text} ({shown})"


def interval(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """(gain over the recipe, half of its 95% interval), means over seeds; None where unknown."""
    gains = [float(row["gain"]) for row in rows if row["gain"]]
    errors = [float(row["gain_error"]) for row in rows if row["gain_error"]]
    if not gains:
        return None, None
    mean, count = sum(gains) / len(gains), len(gains)
    if len(errors) < count:
        return mean, None
    of_rows = sum(error**2 for error in errors) / count / count
    of_seeds = sum((gain - mean) ** 2 for gain in gains) / (count - 1) / count if count > 1 else 0.0
    return mean, 1.96 * math.sqrt(max(of_rows, of_seeds))


def edges(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each setting whose best value is the largest or smallest of those tried, and better than the recipe's
    by more than its interval: a better one may lie outside."""
    tried: dict[tuple, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key, _, value = row["settings"].partition("=")
        if " " in row["settings"] or not key:
            continue
        try:
            number, recipe = float(value), float(row["recipe"])
        except ValueError:
            continue
        values = tried[row["family"], row["data"], int(row["size"]), key]
        values[number].append(row)
        values.setdefault(recipe, [])
    for (family, data, size, key), values in sorted(tried.items()):
        gains = {value: interval(own)[0] or 0.0 for value, own in values.items()}
        best = max(gains, key=lambda value: gains[value])
        half = interval(values[best])[1] if values[best] else None
        if values[best] and half is not None and gains[best] > half and best in (min(values), max(values)):
            yield (
                f"At the edge: {key}={best:g} of {family} on {size:,} {data} ({100 * gains[best]:+.1f} points), of "
                f"{', '.join(f'{value:g}' for value in sorted(values))}."
            )


if __name__ == "__main__":
    main()
