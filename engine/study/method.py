"""How a study was measured: the report's last section."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.engine.data.clusters import ClusterOverlap
from penstock.engine.data.overlap import Overlap
from penstock.engine.page import Block, Bullets, Heading, Paragraph, TableBlock
from penstock.engine.study.families import learns
from penstock.engine.study.findings import Findings
from penstock.engine.study.names import encoder_title, title_of
from penstock.engine.study.plan import expected_and_taken
from penstock.engine.study.report_costs import duration
from penstock.engine.study.report_tables import of_one_seed
from penstock.engine.study.table import Point, Table
from penstock.engine.study.trials import TrialResult

# settings that the report shows, and how
_SHOWN = {
    "model.preset": "{}",
    "training.learning_rate": "learning rate {:g}",
    "training.epochs": "at most {:g} epochs",
    "model.dropout": "dropout {:g}",
    "training.weight_decay": "weight decay {:g}",
    "data.tokens_per_batch": "{:,} tokens a batch",
}


def method_blocks(findings: Findings) -> list[Block]:
    blocks: list[Block] = [Heading("How this was measured"), Bullets(_method(findings))]
    rows = _recipes(findings)
    if rows:
        blocks += [
            Paragraph(
                "What each family reads of a text, and its settings, at its largest size. All that is not named here "
                "is in trials/NAME.json."
            ),
            TableBlock(["", "reads at most", "test texts cut", "settings"], rows),
        ]
    return blocks


def _recipes(findings: Findings) -> list[list[str]]:
    table, rows = findings.table, []
    for family in table.families:
        points = table.points(family)
        done = [trial for trial in table.trials(family, points[-1].size) if trial.status == "done"] if points else []
        first = next((trial for trial in done if trial.made_from is not None), None)
        if first is None or first.made_from is None:
            continue
        settings = first.made_from.settings
        cut = settings.get("data.max_length")
        cut = cut if isinstance(cut, int) else findings.study.get("max_length")
        share = findings.share_cut(cut) if cut is not None else None
        reads = "–" if cut is None or not learns(family) else f"{cut:,} tokens"
        truncated = "–" if share is None or not learns(family) else f"{100 * share:.1f}%"
        rows.append([title_of(family), reads, truncated, _settings(settings, done)])
    return rows


def _settings(settings: Mapping[str, Any], trials: Sequence[TrialResult]) -> str:
    shown = []
    for key, form in _SHOWN.items():
        value = settings.get(key)
        if value is None:
            continue
        with contextlib.suppress(ValueError):  # a word where a number is the rule
            shown.append(form.format(value))
    chosen: dict[str, set[str]] = {}
    for trial in trials:
        for key, value in (trial.chosen or {}).items():
            chosen.setdefault(key, set()).add(f"{value:g}" if isinstance(value, int | float) else str(value))
    shown += [f"{key}={' or '.join(sorted(values))} (by validation)" for key, values in chosen.items()]
    return ",\n".join(", ".join(shown[place : place + 2]) for place in range(0, len(shown), 2)) or "–"


def _method(findings: Findings) -> list[str]:
    study, table = findings.study, findings.table
    identity, machine = study["identity"], study.get("machine", {})
    tests = {trial.test_examples for trial in table.results if trial.status == "done"}
    max_length = study.get("max_length", identity.get("max_length"))
    items = [
        f"Training data: {_names(identity['train'])}{_examples(study.get('train'))}. "
        f"Test data: {_names(identity['test'])}{_examples(study.get('test'))}. "
        f"{len(study.get('labels', []))} classes; texts were kept up to {max_length:,} tokens.",
        f"Encoder: {encoder_title(identity['encoder'])}; all families share its tokenizer."
        if identity["encoder"] is not None
        else "No family needs an encoder; all share the tokenizer of the training data.",
        "Subsets are stratified by class and nested: a seed's smaller subsets lie inside its larger ones, and all "
        "families train on the same ones. A validation split carved from each subset chooses the model and stops the "
        "training; the number of examples includes it. The test set is read once for each trial.",
        *_intervals(table),
    ]
    if len(findings.break_evens) > 1:
        items.append(
            "The answer is about the family that is best at that size on the test rows themselves, which flatters it a "
            "little where several are close."
        )
    if tests and not table.paired.accuracies:
        count = max(tests)
        means = [point.accuracy.mean for family in table.families for point in table.points(family) if point.accuracy]
        sampling = 1.96 * math.sqrt(max(mean * (1 - mean) for mean in means) / count)
        items.append(
            f"Evaluated on {count:,} test rows{', the same for every trial' if identity.get('max_test') else ''}. "
            f"Another test set of this size would move an accuracy by up to ± {100 * sampling:.1f} points (95%): the "
            "intervals over seeds do not contain that."
        )
    if "overlap" in study:
        items.append(f"Overlap of train and test: {Overlap(**study['overlap'])}.")
    if "cluster_overlap" in study:
        items.append(f"Groups: {ClusterOverlap(**study['cluster_overlap'])}.")
    items += _taught(table)
    pretrained = [result for result in table.results if result.pretrained is not None]
    if pretrained:
        families = sorted({title_of(result.trial.family) for result in pretrained})
        items.append(
            f"{', '.join(families)}: pretrained once on "
            f"{_between([own.pretrained.texts for own in pretrained if own.pretrained is not None])} of the training "
            "texts, without their labels, test texts and the validation rows of its trials left out; each trial "
            "fine-tunes the same weights, so intervals do not hold the chance of another pretraining. Costs include "
            "all of it, at every size."
        )
    old = sum(result.made_from is None for result in table.results)
    if old:
        items.append(f"{old} trials are of an earlier penstock, which did not note what they were made from.")
    items.append(_unfinished(table.results))
    if identity.get("overrides"):
        items.append(f"Settings other than the defaults: {', '.join(identity['overrides'])}.")
    if machine:
        items.append(_machine(machine, table))
    if findings.plan is not None and (compared := expected_and_taken(findings.plan, table.results)) is not None:
        expected, taken = map(duration, compared)
        items.append(f"Trials that the study's plan put at {expected}, one after the other, took {taken}.")
    return items


def _taught(table: Table) -> list[str]:
    """What a student was taught with, of each family that has teachers."""
    items = []
    for family in table.families:
        trials = [(trial, trial.taught) for trial in table.results if trial.trial.family == family and trial.taught]
        if not trials:
            continue
        trial, taught = max(trials, key=lambda own: own[0].trial)
        teacher = trial.trial.teacher
        left_out = f"; {taught.left_out:,} that are test texts were left out" if taught.left_out else ""
        items.append(
            f"{title_of(family)}: the teacher of each trial is that of {teacher.family if teacher else '?'} with the "
            f"same subset and seed; it read {_between([own.texts for _, own in trials])} of the other training texts, "
            f"whose labels nobody saw{left_out}. Costs include its training and its reading. Validation labels are the "
            "true ones of the subset, else the teacher's."
        )
    return items


def _between(counts: Sequence[int]) -> str:
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _machine(machine: Mapping[str, Any], table: Table) -> str:
    jobs = max((result.jobs or machine.get("jobs", 1) for result in table.results), default=1)
    together = f", {jobs} trials at a time: times of training suffer from it" if jobs > 1 else ""
    versions = {"torch": machine.get("torch"), **machine.get("versions", {})}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    before = [result.pretrained.seconds for result in table.results if result.pretrained is not None]
    seconds = sum(result.spent_seconds for result in table.results) + max(before, default=0.0)
    what = "The trials and the pretraining that some begin with" if before else "The trials"
    return (
        f"Machine: {machine.get('device')}, {machine.get('cores')} cores, {machine.get('threads')} threads, "
        f"{named}{together}. {what} took {duration(seconds)} in all, one after the other."
    )


def _intervals(table: Table) -> list[str]:
    """How the intervals were made, and what they leave out."""
    seeds = "Seeds vary the subset, the initial weights, the order and dropout together."
    paired = table.paired
    if not paired.accuracies:
        items = [f"{seeds} Intervals are Student's t over seeds; a figure without an interval comes from one seed."]
        if paired.without:
            items.append(
                f"{paired.without} trials are of an earlier penstock and kept no predictions: no figure's interval is "
                "over test rows, and no gap has a p-value."
            )
        return items
    groups = f"{paired.rows:,} test rows"
    if paired.column:
        groups = f"{paired.clusters:,} groups of test rows with the same {paired.column!r}, {paired.rows:,} rows in all"
    points = [point for family in filter(learns, table.families) for point in table.points(family)]
    items = [
        f"Intervals hold 95% of the draws of a bootstrap: {groups}, the same ones for every family."
        if of_one_seed([point.accuracy for point in points])
        else f"{seeds} Intervals hold 95% of the draws of a two-way bootstrap: {groups}, the same ones for every "
        "family, and seeds by Student's t with variances moderated over sizes and families.",
    ]
    single = [point for point in points if point.accuracy and point.accuracy.rows and point.accuracy.count == 1]
    borrowed = [point for point in single if point.accuracy and point.accuracy.borrowed]
    if borrowed:
        items.append(
            f"From one seed: {_named(borrowed)}. How much others would differ is taken from sizes and families that "
            "have several."
        )
    if alone := [point for point in single if point not in borrowed]:
        items.append(
            f"From one seed: {_named(alone)}. Their intervals are over test rows alone and leave out how much another "
            "subset or other initial weights would change them."
        )
    lacking = [point for point in points if point.accuracy and not point.accuracy.rows]
    if lacking:
        items.append(
            f"{paired.without} trials are of an earlier penstock and kept no predictions: the intervals of "
            f"{_named(lacking)} are over seeds alone, their gaps have no p-values, and a break-even that needs them is "
            "drawn over seeds alone."
        )
    return items


def _named(points: Sequence[Point]) -> str:
    sizes: dict[str, list[str]] = {}
    for point in points:
        sizes.setdefault(title_of(point.family), []).append(f"{point.size:,}")
    return "; ".join(f"{title} at {', '.join(own)}" for title, own in sizes.items())


def _unfinished(results: Sequence[TrialResult]) -> str:
    done = sum(result.status == "done" for result in results)
    lost = [result for result in results if result.status != "done"]
    if not lost:
        return f"All {done} trials that were run are done; none diverged or failed."
    named = "; ".join(f"{result.trial.name} {result.status} ({result.error})" for result in lost[:5])
    more = "; …" if len(lost) > 5 else ""
    return f"{done} trials are done, {len(lost)} are not and have no part in the means: {named}{more}."


def _names(sources: Sequence[str]) -> str:
    return ", ".join(source if ":" in source else Path(source).name for source in sources)


def _examples(entry: dict[str, Any] | None) -> str:
    if not entry:
        return ""
    mean = entry["tokens"] / max(entry["examples"], 1)
    return f" ({entry['examples']:,} examples, {mean:.0f} tokens on average)"
