"""The command line: `penstock COMMAND`. Each group of commands is a module of this package."""

import errno
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from penstock.engine.cli import bench, compare, data, distil, doctor, export, inspect, predict, pretrain, study, train
from penstock.engine.cli.stopping import Stopped, ended_by_signals
from penstock.engine.errors import DiskError, OutOfMemoryError, PenstockError, is_out_of_memory


class Command(TyperCommand):
    """Typer's, which refuses an option twice that takes one value: the parser would keep the last and say nothing."""

    def make_parser(self, ctx: Any) -> Any:
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
            values, rest, order = parse(args)
            for parameter in () if ctx.resilient_parsing else dict.fromkeys(order):
                single = not (parameter.multiple or parameter.is_eager or getattr(parameter, "count", False))
                if parameter.param_type_name == "option" and single and order.count(parameter) > 1:
                    raise typer.BadParameter(
                        "given more than once, and only one can be used: leave the others out",
                        ctx=ctx,
                        param=parameter,
                    )
            return values, rest, order

        parser.parse_args = parse_once
        return parser


app = typer.Typer(
    name="penstock",
    help="Train text classifiers on millions of labelled examples, and learn when pretraining stops paying.\n\n"
    "Start with:  penstock study --train reviews.csv --test held-out.csv --text text --label stars --out answer",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for commands in (data, inspect, train, pretrain, distil, predict, export, study, compare, bench, doctor):
    commands.register(app)
for command in app.registered_commands:
    command.cls = command.cls if command.cls and issubclass(command.cls, Command) else Command


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"penstock {version('penstock')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line; what a user can mend ends in one line on stderr and an exit code of its own kind."""
    # Tokenizers warn about forks, which a study makes on purpose, and no progress bar but ours is wanted.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with ended_by_signals():
            app(prog_name="penstock")
    except PenstockError as error:
        fail(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        where = error.filename or "the output"
        fail(DiskError(f"{where}: {error.strerror}; free some space and run the command again"))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(OutOfMemoryError(f"out of memory ({error}); data.tokens_per_batch and model sizes decide what is needed"))
    except Stopped as stop:
        print(f"penstock: stopped by {signal.Signals(stop.signum).name}", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("penstock: interrupted", file=sys.stderr)
        sys.exit(130)


def fail(error: PenstockError) -> None:
    print(f"penstock: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(error.exit_code)
