"""The report's part on predictions that were made elsewhere."""

from penstock.engine.page import Block, Heading, Paragraph, TableBlock
from penstock.engine.study.external import ExternalFigures
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.report_tables import over_rows, p_value


def external_blocks(externals: list[ExternalFigures]) -> list[Block]:
    """A line for each; nothing where there is none."""
    if not externals:
        return []
    sizes = sorted({size for each in externals for size in each.gaps})
    rows = [
        [each.name, _share(each.accuracy), *(_gap(each, size) if size in each.gaps else "–" for size in sizes)]
        for each in externals
    ]
    return [
        Heading("Predictions from elsewhere"),
        Paragraph(
            "Test accuracy in % with its 95% interval over test rows; then how far the fine-tuned encoder is ahead, in "
            "points, with the number of training examples at the head of the column, its 95% interval over "
            f"{over_rows([gap for each in externals for gap in each.gaps.values()])}, and the p-value of the "
            "difference (Holm, over the sizes)."
        ),
        TableBlock(["", "accuracy", *(f"{size:,}" for size in sizes)], rows, "external.csv"),
    ]


def _share(estimate: Estimate) -> str:
    assert estimate.low is not None
    assert estimate.high is not None
    return f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}; {100 * estimate.high:.1f}]"


def _gap(external: ExternalFigures, size: int) -> str:
    gap, test = external.gaps[size], external.tests[size]
    assert gap.low is not None
    assert gap.high is not None
    shown = p_value(test.adjusted, test.at_least)
    shown = shown if shown[0] in "<≤" else f"= {shown}"
    return f"{100 * gap.mean:+z.1f} [{100 * gap.low:+z.1f}; {100 * gap.high:+z.1f}], p {shown}"
