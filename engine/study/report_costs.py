"""The report's sections on costs: in time and memory, and in money."""

import math
from collections.abc import Sequence

from penstock.engine.page import Block, Bullets, Heading, Paragraph, TableBlock
from penstock.engine.study.break_even import rounded
from penstock.engine.study.costs import Cost
from penstock.engine.study.families import REFERENCE, learns
from penstock.engine.study.findings import Findings
from penstock.engine.study.money import Bill, Exchange, money
from penstock.engine.study.names import capital, name_of, title_of
from penstock.engine.study.trials import TrialResult


def cost_blocks(findings: Findings) -> list[Block]:
    training, predicting, size = [], [], []
    for family in findings.table.families:
        points = findings.table.points(family)
        if points:
            training.append(_training(findings, family, points[-1].size))
        cost = findings.costs.get(family)
        if cost is not None:
            predicting.append([title_of(family), *_predicting(cost)])
            size.append(
                [
                    title_of(family),
                    _millions(cost.parameters),
                    _millions(cost.embedding_parameters),
                    _megabytes(cost.bytes_on_disk),
                    "–" if cost.memory_bytes is None else _megabytes(cost.memory_bytes),
                ]
            )
    taught = any(trial.taught is not None for trial in findings.table.results)
    pretrained = [trial for trial in findings.table.results if trial.pretrained is not None]
    more = [
        part
        for part, there in (("its teacher's training and reading", taught), ("its pretraining", pretrained))
        if there
    ]
    blocks: list[Block] = [
        Heading("Costs"),
        Paragraph(
            "Training at each family's largest size, without evaluation on the test set, means over seeds"
            + (f", where a family has that with {' or '.join(more)}. " if more else ". ")
            + "Time, by the clock, is of training steps alone; of a baseline, of all of its fit with the search for "
            "its settings. Processor time, of all threads, is of all of the training, with validation and checkpoints."
        ),
        TableBlock(["", "training examples", "time", "processor time", "tokens/s"], training, "trials.csv"),
    ]
    if pretrained:
        blocks.append(Bullets(pretraining_lines(pretrained)))
    if not predicting:
        return blocks
    counts = [cost.texts for cost in findings.costs.values() if cost.texts]
    ends = sorted({min(counts), max(counts)}) if counts else []
    texts = f" of {' to '.join(f'{count:,}' for count in ends)} test texts" if ends else ""
    blocks += [
        Paragraph(
            "Predicting: the median, 95th and 99th percentile of the time that one prediction takes, for one text or "
            "32 at once, tokenized already; a percentile that too few runs tell is left out. And texts a second from "
            f"raw text to label{texts}, decoded from the store's tokens, read as penstock predict reads them."
        ),
        TableBlock(
            ["", "one text: p50 / p95 / p99, ms", "32 texts: p50 / p95 / p99, ms", "texts/s, raw text to label"],
            predicting,
            "costs.csv",
        ),
        Paragraph("Size; and the most memory that a process held while it predicted, with Python and its libraries."),
        TableBlock(["", "parameters", "in embeddings", "on disk", "memory"], size, "costs.csv"),
    ]
    busy = [family for family, cost in findings.costs.items() if cost.busy]
    if busy:
        named = ", ".join(name_of(family) for family in busy)
        blocks.append(Paragraph(f"The machine was busy with other work while these were measured: {named}."))
    return blocks


def need_blocks(findings: Findings) -> list[Block]:
    """What each family needs at its largest size."""
    largest = {need.family: need for need in findings.needs}  # sizes rise
    priced = findings.prices is not None
    rows = [
        [
            title_of(need.family),
            f"{need.labels:,}",
            f"{need.unlabelled_texts:,.0f}" if need.unlabelled_texts else "none",
            "–" if need.cpu_hours is None else _hours(need.cpu_hours),
            *([money(need.money)] if priced else []),
            f"{100 * need.accuracy:.1f}%",
        ]
        for need in largest.values()
    ]
    return [
        Heading("What each family needs"),
        Paragraph(
            "At its largest size: labels, texts of the same kind without labels, and hours of a processor core to make "
            "the model, those of its teacher and its pretraining included"
            + (", and the sum in money, its predictions included." if priced else ".")
        ),
        TableBlock(
            ["", "labels", "unlabelled texts", "CPU hours", *(["money"] if priced else []), "accuracy"],
            rows,
            "needs.csv",
        ),
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def money_blocks(findings: Findings) -> list[Block]:
    """What it costs; nothing where no price was given."""
    prices = findings.prices
    if prices is None:
        return []
    chosen = exchange_lines(findings)
    beside = any((trial.jobs or 1) > 1 for trial in findings.table.results)
    return [
        Heading("In money"),
        Paragraph(
            f"At {prices}: the labels, the hours that training took, and the hours that the predictions take."
            + (" Trials that ran side by side share the machine's hours." if beside else "")
        ),
        *([Bullets(chosen)] if chosen else []),
        TableBlock(
            ["", *(f"{size:,}" for size in findings.table.sizes)],
            [
                [
                    title_of(family),
                    *(_of_size(findings.bills, family, size) for size in findings.table.sizes),
                ]
                for family in filter(learns, findings.table.families)
            ],
            "money.csv",
        ),
    ]


def exchange_lines(findings: Findings) -> list[str]:
    """Sentences on the encoder's largest size: what its accuracy costs, by it and by each other family; none where no
    price was given."""
    largest = max((exchange.size for exchange in findings.exchanges), default=0)
    chosen = [exchange for exchange in findings.exchanges if exchange.size == largest]
    if not chosen:
        return []
    first = chosen[0]
    own = f"The encoder's {first.size:,} labels reach {100 * first.accuracy:.1f}% for {money(first.encoder.total)}."
    return [own, *map(exchange_line, chosen)]


def exchange_line(exchange: Exchange) -> str:
    """What the encoder's accuracy costs by another family."""
    own, other, family = exchange.encoder, exchange.bill, name_of(exchange.family)
    needed = exchange.needed[0]
    if math.isinf(needed):
        return f"{capital(family)} does not reach that with {other.size:,.0f} labels, for {money(other.total)}."
    if needed == 0:
        return f"{capital(family)} needs fewer than {other.size:,.0f} labels for it, less than {money(other.total)}."
    text = f"{capital(family)} needs about {rounded(needed)} labels for it, {money(other.total)}{_range(exchange)}"
    if exchange.even_at is None:
        return f"{text}."
    below, above = (family, name_of(REFERENCE)) if other.size > own.size else (name_of(REFERENCE), family)
    return f"{text}; below {money(exchange.even_at)} a label {below} is cheaper, above it {above}."


def _range(exchange: Exchange) -> str:
    if exchange.low is None or exchange.high is None or exchange.low.total is None or exchange.high.total is None:
        return ""
    low, high = exchange.needed[1:]
    below = "less than " if low == 0 else ""
    above = "more than " if high is not None and math.isinf(high) else ""
    return f" (95% interval {below}{money(exchange.low.total)} to {above}{money(exchange.high.total)})"


def _of_size(bills: Sequence[Bill], family: str, size: int) -> str:
    own = next((bill for bill in bills if (bill.family, bill.size) == (family, size)), None)
    return "–" if own is None else money(own.total)


def pretraining_lines(trials: Sequence[TrialResult]) -> list[str]:
    """What the study's pretraining took, once, and how much of it that is for each label.

    Args:
        trials: that begin with it.
    """
    taken = trials[0].pretrained
    assert taken is not None
    sizes = sorted({trial.trial.size for trial in trials})
    shares = ", ".join(f"{duration(taken.seconds / size)} for each of {size:,} labels" for size in sizes)
    cpu = "" if taken.cpu_seconds is None else f", {duration(taken.cpu_seconds)} of processor time"
    return [
        f"Pretraining, once for all trials that begin with it: {taken.texts:,} training texts without their labels, "
        f"{taken.tokens:,} tokens, {duration(taken.seconds)}{cpu}. That is {shares}."
    ]


def _training(findings: Findings, family: str, size: int) -> list[str]:
    done = [trial for trial in findings.table.trials(family, size) if trial.status == "done"]
    speeds = [trial.tokens_per_second for trial in done if trial.tokens_per_second]
    known = [seconds for trial in done if (seconds := trial.all_cpu_seconds) is not None]
    return [
        title_of(family),
        f"{size:,}",
        duration(_mean([trial.all_seconds for trial in done])),
        duration(_mean(known)) if len(known) == len(done) else "–",
        f"{_mean(speeds):,.0f}" if speeds and learns(family) else "–",
    ]


def _predicting(cost: Cost) -> list[str]:
    speed = cost.texts_per_second
    return [
        *(_percentiles(cost, batch) for batch in (1, 32)),
        "–" if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}",
    ]


def _percentiles(cost: Cost, batch: int) -> str:
    shown = [own.get(batch) for own in (cost.latency_ms, cost.latency_p95_ms, cost.latency_p99_ms)]
    return " / ".join("–" if value is None else _milliseconds(value) for value in shown)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count:,}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, in two or three digits."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
