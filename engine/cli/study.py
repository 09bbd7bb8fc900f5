"""`penstock study` and `penstock report`: the question of how many examples, from the data to the answer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.engine.cli.options import EncodingOption, SeparatorOption, TextOption
from penstock.engine.study.families import ON_REQUEST, REFERENCE, USUAL_FAMILIES

if TYPE_CHECKING:
    from penstock.engine.study.settings import StudySettings

SYNTHETIC_TRAIN = "synthetic:reviews?n=2500&seed=0"
SYNTHETIC_TEST = "synthetic:reviews?n=1000&seed=1"
# So that ten minutes suffice, and the others catch up with what the encoder makes of the labels that it has.
SYNTHETIC_SIZES, SYNTHETIC_SEEDS, SYNTHETIC_MOST = "100,500,2500", "1", ["encoder=500"]
SIZES, SEEDS = "1%,10%,30%,100%", "3"
PriceLabel = Annotated[
    float | None, typer.Option("--price-label", help="Price of one label: the report also compares in money.")
]
PriceHour = Annotated[
    float | None, typer.Option("--price-hour", help="Price of an hour of this machine, in the same currency.")
]
Predictions = Annotated[
    float | None, typer.Option("--predictions", help="How many texts the model will classify, such as 1e6.")
]


def register(app: typer.Typer) -> None:
    app.command()(study)
    app.command()(report)


def study(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[FAMILY.]SECTION.KEY=VALUE]...",
            help="Training settings for every family, or for one: lstm.model.preset=lstm-4-512 training.epochs=3",
        ),
    ] = None,
    train: Annotated[
        list[str] | None, typer.Option(help="Training source or store; may be given again. Default: generated reviews.")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="Test source or store; may be given again.")] = None,
    text: TextOption = None,
    label: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    separator: SeparatorOption = None,
    encoding: EncodingOption = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder by hub name or path, whose tokenizer all families share. Default: the packaged MiniLM; "
            "without it, where no family needs an encoder, a tokenizer trained on the training texts."
        ),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help=f"Training-set sizes, as counts or percentages. Default: {SIZES}.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds at each size; 3,8k:2,32k:1 is three, two from 8,000 examples on, one from 32,000 on."),
    ] = None,
    max_size: Annotated[
        list[str] | None, typer.Option(metavar="FAMILY=SIZE", help="Largest size for a family, such as encoder=8k.")
    ] = None,
    families: Annotated[
        str, typer.Option(help=f"The families to compare; {', '.join(ON_REQUEST)} are others.")
    ] = ",".join(USUAL_FAMILIES),
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Every family reads this many tokens of a text at most.  [default: each family's recipe; "
            "encoder.data.max_length=256 for one]",
        ),
    ] = None,
    truncation: Annotated[
        str | None,
        typer.Option(help="What is kept of longer texts: head, tail or head+tail.  [default: the tokenizer's own]"),
    ] = None,
    bad_rows: Annotated[str, typer.Option(help="Rows that cannot be used: fail, or quarantine them.")] = "fail",
    max_test: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on this many test rows, the same for every trial.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of the test source that says which rows belong together, such as a film: intervals then hold "
            "for other films, not only for other rows.",
        ),
    ] = None,
    pretrain_tokens: Annotated[
        float | None,
        typer.Option(
            help="Tokens that the families lstm-pretrained... learn from at most, without labels, before their trials: "
            "such as 1e7.  [default: 250 million, 20 passes at most]"
        ),
    ] = None,
    external: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Predictions of the test rows that were made elsewhere, with a column label; may be given again.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="All randomness follows from it.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Trials run at a time.")] = 1,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Keep the trained models, in OUT/runs.")] = False,
    price_label: PriceLabel = None,
    price_hour: PriceHour = None,
    predictions: Predictions = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Run those trials of the grid that narrow the answer most in this time, such as 3h or 30m. "
            "Preparation and measurements come before it.",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Train nothing: say how long the study would take here, what disk it needs and which difference its "
            "test rows can settle.",
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="The study's directory; given again, the study resumes.")] = Path("study"),
) -> None:
    """Train every model family on growing subsets and report accuracy, gap, break-even size and costs.

    If a study is interrupted, the same command resumes it; with more sizes or seeds, it adds what is missing. Without
    arguments it runs on generated reviews.

    Example:  penstock study --train reviews.parquet --test held-out.parquet --text text --label stars --out answer
    --sizes 500,2k,8k,32k --seeds 3,32k:1 --max-size encoder=8k

    Before it, in about a minute, what it would take:  the same with --plan. Within three hours:  with --budget 3h
    """
    from penstock.engine.data.sources import Reading
    from penstock.engine.errors import ConfigError
    from penstock.engine.study.budget import parse_budget
    from penstock.engine.study.external import parse_externals
    from penstock.engine.study.money import Prices
    from penstock.engine.study.settings import StudySettings, check_families, parse_tokens, usual_encoder
    from penstock.engine.study.sizes import parse_max_sizes, parse_seeds, parse_sizes
    from penstock.engine.study.study import run_study
    from penstock.engine.training.memory import keep_freed_memory

    if bool(train) != bool(test):
        raise ConfigError("give both --train and --test, or neither for the generated reviews")
    seconds = None if budget is None else parse_budget(budget)
    chosen = check_families([name.strip() for name in families.split(",") if name.strip()])
    most = SYNTHETIC_MOST if not (train or sizes) and REFERENCE in chosen else []
    settings = StudySettings(
        train=tuple(train or [SYNTHETIC_TRAIN]),
        test=tuple(test or [SYNTHETIC_TEST]),
        encoder=encoder or usual_encoder(chosen),
        sizes=parse_sizes(sizes or (SIZES if train else SYNTHETIC_SIZES)),
        seeds=parse_seeds(seeds or (SEEDS if train else SYNTHETIC_SEEDS)),
        max_sizes=parse_max_sizes(max_size or most, chosen),
        families=chosen,
        text=text,
        label=label,
        seed=seed,
        max_length=max_length,
        truncation=truncation,
        bad_rows=bad_rows,
        max_test=max_test,
        overrides=tuple(overrides or []),
        reading=Reading(separator, encoding),
        cluster=cluster,
        external=parse_externals(external or []),
        pretrain_tokens=parse_tokens(pretrain_tokens),
        prices=Prices.of(price_label, price_hour, predictions, out),
    )
    keep_freed_memory()
    if plan:
        show_plan(settings, out, jobs, keep_runs, seconds)
        return
    run_study(settings, out, jobs=jobs, keep_runs=keep_runs, budget=seconds)
    report(out)


def show_plan(settings: "StudySettings", out: Path, jobs: int, keep_runs: bool, budget: float | None) -> None:
    """Prints what the study would do; the figures go to OUT/plan.json."""
    from rich.console import Console

    from penstock.engine.study.directory import read_study
    from penstock.engine.study.money import Prices
    from penstock.engine.study.plan import PLAN_NAME
    from penstock.engine.study.plan_tables import plan_lines, plan_table
    from penstock.engine.study.planning import plan_study

    plan = plan_study(settings, out, jobs=jobs, keep_runs=keep_runs)
    console = Console()
    console.print(plan_table(plan))
    for line in plan_lines(plan, budget, Prices.in_study(read_study(out))):
        console.print(line, highlight=False, markup=False)
    print(f"plan: {out / PLAN_NAME}; the same command without --plan runs the study")


def report(
    directory: Annotated[Path, typer.Argument(help="A study's directory.")],
    price_label: PriceLabel = None,
    price_hour: PriceHour = None,
    predictions: Predictions = None,
) -> None:
    """Write the report of a study again, from the trials that are finished. Prices that are not given are those that
    were given last.

    Example:  penstock report answer --price-label 0.05 --price-hour 0.4 --predictions 1e6
    """
    from rich.console import Console

    from penstock.engine.study.money import Prices
    from penstock.engine.study.report import break_even_lines, headline, rich_table, write_report
    from penstock.engine.study.report_costs import exchange_lines

    findings = write_report(directory, Prices.of(price_label, price_hour, predictions, directory))
    console = Console()

    def show(*lines: str) -> None:
        for line in lines:
            console.print(line, highlight=False, markup=False)

    console.print(rich_table(findings))
    show(*headline(findings))
    if lines := break_even_lines(findings):
        show("", "Break-even:", *lines)
    if lines := exchange_lines(findings):
        show("", *lines)
    if findings.checks:
        show("", "To mind:", *map(str, findings.checks))
    print(f"report: {directory / 'report.html'} (one file; also report.md and report.json)")
