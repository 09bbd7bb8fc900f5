"""The evaluation of a model for lists of labels to look at: a table for the terminal and a page with pictures."""

from collections.abc import Sequence
from pathlib import Path

from penstock.engine.page import Block, Bullets, Heading, Headline, Paragraph, Picture, TableBlock, to_html
from penstock.engine.training.evaluation_page import figure_text, print_table, reliability_picture, worst_and_best
from penstock.engine.training.multi_label import MIN_POSITIVES
from penstock.engine.training.multi_label_evaluation import LabelFigures, MultiLabelEvaluation

COLUMNS = ("label", "precision", "recall", "F1", "AUROC", "AP", "support", "given", "threshold")


def print_evaluation(evaluation: MultiLabelEvaluation) -> None:
    """The summary and a table by label, on stdout."""
    shown, note = worst_and_best(evaluation.labels, "labels")
    print_table(evaluation.summary(), _averages(evaluation), COLUMNS, _label_rows(shown), [note] if note else [])


def evaluation_page(evaluation: MultiLabelEvaluation, run: str, data: str) -> str:
    """One self-contained HTML page."""
    metrics = evaluation.metrics
    shown, note = worst_and_best(evaluation.labels, "labels")
    headline = [
        f"Of the labels given, {metrics.micro_precision:.2%} are right; of the labels that {metrics.num_examples:,} "
        f"examples have, {metrics.micro_recall:.2%} are given. {metrics.accuracy:.2%} of the examples have exactly the "
        "labels given.",
        *(f"{caveat[0].upper()}{caveat[1:]}." for caveat in metrics.caveats()),
    ]
    blocks: list[Block] = [
        Headline(headline),
        Heading("In figures"),
        TableBlock(["figure", "value"], [list(pair) for pair in _averages(evaluation)]),
        Heading("Label by label"),
        Paragraph(
            "A label is given where its probability is at least its threshold. Precision: the share of the examples "
            "given a label that have it. Recall: the share of the examples with a label that are given it. Support: "
            "the examples that have it. Given: those given it. AUROC and average precision (AP): how well its "
            "probability ranks the examples that have it above the others."
        ),
        TableBlock(COLUMNS, _label_rows(shown)),
        *([Paragraph(note)] if note else []),
        Heading("How far the probabilities can be believed"),
        Picture(
            reliability_picture(evaluation.reliability, "probability of a label", "pairs of example and label"),
            "How often an example has a label, by the label's probability. Expected calibration error: "
            f"{evaluation.ece:.4f}. Below the diagonal the model is surer than it should be; the bars show "
            "where the pairs of example and label are.",
        ),
        Heading("How this was measured"),
        Bullets(_method(evaluation, run, data)),
    ]
    return to_html(f"Evaluation of {Path(run).name or run} on {Path(data).name or data}", blocks)


def _averages(evaluation: MultiLabelEvaluation) -> list[tuple[str, str]]:
    metrics = evaluation.metrics
    figures: list[tuple[str, float | None]] = [
        ("micro-F1", metrics.micro_f1),
        ("micro precision", metrics.micro_precision),
        ("micro recall", metrics.micro_recall),
        ("macro-F1", metrics.macro_f1),
        ("weighted F1", metrics.weighted_f1),
        ("subset accuracy", metrics.accuracy),
        ("Hamming loss", metrics.hamming_loss),
        ("macro AUROC", evaluation.auroc),
        ("micro AUROC", evaluation.micro_auroc),
        ("macro average precision", evaluation.average_precision),
        ("micro average precision", evaluation.micro_average_precision),
        ("calibration error", evaluation.ece),
        ("loss", metrics.loss),
    ]
    return [(name, figure_text(value)) for name, value in figures]


def _label_rows(labels: Sequence[LabelFigures]) -> list[list[str]]:
    return [
        [
            each.name,
            *map(figure_text, (each.precision, each.recall, each.f1, each.auroc, each.average_precision)),
            f"{each.support:,}",
            f"{each.predicted:,}",
            f"{each.threshold:.3f}",
        ]
        for each in labels
    ]


def _method(evaluation: MultiLabelEvaluation, run: str, data: str) -> list[str]:
    metrics = evaluation.metrics
    items = [f"The best model of {run} on {data}: {metrics.num_examples:,} examples, {metrics.num_classes:,} labels."]
    if evaluation.bad_rows:
        items.append(f"{evaluation.bad_rows:,} rows could not be used and are in none of the figures.")
    items.append(
        f"The thresholds are where F1 is best on the validation rows of the training data: a label's own where "
        f"{MIN_POSITIVES} of these rows have it, otherwise one for all labels; 0.5 without validation rows."
    )
    items.append(
        "Micro figures are over all pairs of example and label, macro ones count each label alike, weighted ones by "
        "its examples; macro-F1 is over the labels that occur or are given. AUROC and average precision do not depend "
        "on the thresholds"
        + (
            "."
            if evaluation.score_examples == metrics.num_examples
            else f", and are from {evaluation.score_examples:,} of the examples at even distances."
        )
    )
    items.append(
        f"The calibration error is the mean difference between probability and frequency over "
        f"{len(evaluation.reliability)} bins of equal width, weighted by their pairs of example and label."
    )
    return items
