"""A study's plan for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.engine.machine import is_busy
from penstock.engine.study.families import FAMILIES, REFERENCE
from penstock.engine.study.money import Prices, money
from penstock.engine.study.plan import Plan, duration, in_parallel
from penstock.engine.study.resolution import resolution_lines
from penstock.engine.study.trials import Trial, trial_named

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def plan_table(plan: Plan) -> "RichTable":
    """Families by sizes: trials, and how long each takes; what is to do in the last column and row."""
    from rich.table import Table as RichTable

    done = set(plan.done)
    trials = [trial for name in plan.seconds if (trial := trial_named(name)) is not None]
    sizes = sorted({trial.size for trial in trials})
    families = [family for family in FAMILIES if any(trial.family == family for trial in trials)]
    table = RichTable(title="Trials, and how long each takes", title_justify="left")
    for place, name in enumerate(["training examples", *(f"{size:,}" for size in sizes), "to do"]):
        table.add_column(name, justify="right" if place else "left")

    def to_do(own: Sequence[Trial]) -> str:
        left = [plan.likely[trial.name] for trial in own if trial.name not in done]
        return duration(sum(left)) if left else "done"

    for family in families:
        cells = []
        for size in sizes:
            own = [trial for trial in trials if (trial.family, trial.size) == (family, size)]
            cells.append(_cell([trial.name for trial in own], plan, done))
        table.add_row(family, *cells, to_do([trial for trial in trials if trial.family == family]))
    table.add_section()
    totals = [to_do([trial for trial in trials if trial.size == size]) for size in sizes]
    table.add_row("one after the other", *totals, to_do(trials))
    return table


def _cell(names: Sequence[str], plan: Plan, done: set[str]) -> str:
    if not names:
        return "–"
    left = [name for name in names if name not in done]
    finished = len(names) - len(left)
    if not left:
        return f"{finished} done"
    text = f"{len(left)} × {duration(max(plan.likely[name] for name in left))}"
    return f"{finished} done, {text}" if finished else text


def plan_lines(plan: Plan, budget: float | None = None, prices: Prices | None = None) -> list[str]:
    """What the table does not say, in sentences.

    Args:
        budget: seconds that the study may take; None for no limit. prices: None for none.
    """
    to_do = plan.to_do
    if to_do:
        how = f" with --jobs {plan.jobs}" if plan.jobs > 1 else ""
        first = (
            f"{len(to_do):,} {'trial' if len(to_do) == 1 else 'trials'} to do, {len(plan.done):,} done: about "
            f"{duration(3600 * plan.likely_hours)}{how}"
        )
        most = duration(3600 * plan.hours)
        first += f", {most} if no training stops early." if most != duration(3600 * plan.likely_hours) else "."
        if not plan.done:
            first += " Measuring costs takes about half a minute a family more."
    else:
        first = f"All {len(plan.done):,} trials are done."
    return [
        first,
        *_pretraining(plan),
        *_within(plan, budget),
        *_money(plan, prices),
        *_sources(plan),
        *_stopping(plan),
        _disk_line(plan),
        *resolution_lines(plan.resolution, plan.clusters, plan.column),
    ]


def _pretraining(plan: Plan) -> list[str]:
    if plan.pretraining is None:
        return []
    sizes = sorted(
        {trial.size for name in plan.seconds if (trial := trial_named(name)) and FAMILIES[trial.family].pretrains}
    )
    shares = ", ".join(f"{duration(plan.pretraining / size)} for each of {size:,} labels" for size in sizes)
    return [
        f"Before them, once, pretraining on {plan.pretraining_tokens:,.0f} tokens without labels: about "
        f"{duration(plan.pretraining)} more, at the speed at which its trials train; that is {shares}."
    ]


def _within(plan: Plan, budget: float | None) -> list[str]:
    """What the budget goes to: first seeds, with the pretraining that some begin with, then those that decide
    something."""
    if budget is None or plan.likely_seconds <= budget:
        return [] if budget is None else [f"All of it fits into a budget of {duration(budget)}."]
    trials = [trial for name in plan.to_do if (trial := trial_named(name)) is not None]
    first = in_parallel([plan.likely[trial.name] for trial in trials if trial.seed == 0], plan.jobs)
    first += plan.pretraining or 0.0
    seeds = "first seeds" if plan.pretraining is None else "first seeds, with the pretraining,"
    if first > budget:
        return [
            f"A budget of {duration(budget)} does not suffice for all {seeds.rstrip(',')}, which take "
            f"{duration(first)}."
        ]
    compared = any(name.startswith(f"{REFERENCE}-") for name in plan.seconds)
    where = "where the gap to the encoder is undecided" if compared else "one after the other"
    return [
        f"Of a budget of {duration(budget)}, {seeds} take {duration(first)}; what is left goes to further seeds, "
        f"{where}."
    ]


def _money(plan: Plan, prices: Prices | None) -> list[str]:
    """What the study itself costs; what its models do is the report's."""
    if prices is None:
        return []
    parts = []
    if prices.hour:
        hourly = prices.hour / 3600
        likely, most = (money(hourly * seconds) for seconds in (plan.likely_seconds, plan.most_seconds))
        parts.append(f"the trials to do cost about {likely}" + (f", {most} at most" if most != likely else ""))
    if prices.label:
        largest = max(trial.size for name in plan.seconds if (trial := trial_named(name)) is not None)
        parts.append(f"the {largest:,} labels of the largest size {money(prices.label * largest)}")
    found = f": {', '.join(parts)}" if parts else ""
    return [f"At {prices}{found}. The report says what each family's model costs."]


def _sources(plan: Plan) -> list[str]:
    """How the estimates were made."""
    steps, fits, finished = [], [], []
    for family, speed in plan.speeds.items():
        rate = f"{family} {1 / speed.train:,.0f} tokens/s" if speed.train > 0 else family
        if speed.finished is not None:
            finished.append(f"{family} ({speed.finished})")
        elif FAMILIES[family].baseline is None:
            steps.append(rate)
        else:
            fits.append(family)
    lines = []
    if steps:
        lines.append(
            f"Measured here by a few steps with the settings of the largest size: {', '.join(steps)}. Small sizes "
            "have smaller batches and may be slower."
        )
    if fits:
        lines.append(f"Measured by fitting small subsets, scaled with their tokens: {', '.join(fits)}.")
    if finished:
        lines.append(f"By finished trials of this study: {', '.join(finished)}.")
    if is_busy(plan.others):
        lines.append(f"Other processes kept {plan.others:.1f} cores busy meanwhile: on a quiet machine it is faster.")
    return lines


def _stopping(plan: Plan) -> list[str]:
    """What is assumed of trainings that may stop early."""
    by_rule = [f"{family} {own.share:.0%}" for family, own in plan.stopping.items() if not own.trials]
    by_trials = [
        f"{family} {own.share:.0%} ({own.trials} {'trial' if own.trials == 1 else 'trials'})"
        for family, own in plan.stopping.items()
        if own.trials
    ]
    lines = []
    if by_rule:
        lines.append(
            f"Early stopping: expected are {', '.join(by_rule)} of the epochs, on average over the trials to do. No "
            "finished trial tells: it takes the best evaluation for any of those in the last two thirds of a run."
        )
    if by_trials:
        lines.append(f"Early stopping as in finished trials of the nearest size: {', '.join(by_trials)} of the epochs.")
    return lines


def _disk_line(plan: Plan) -> str:
    disk = plan.disk
    parts = [
        (disk.stores, "stores, which are there already"),
        (disk.encoded, "encoded texts"),
        (disk.predictions, "predictions"),
        (disk.pretraining, "the pretraining"),
        (disk.runs, "trained models (--keep-runs)" if plan.keep_runs else "trials in progress, removed when they end"),
    ]
    named = "; ".join(f"{_bytes(size)} {what}" for size, what in parts if size)
    return f"Disk: about {_bytes(disk.total)} ({named})."


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}" if count < 10 * size else f"{count / size:,.0f} {unit}"
    return f"{count / 1e3:.0f} kB"
