"""`penstock export`. What can be wrong in paths and options shows before torch is imported."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from penstock.engine.cli.predict import RunArgument


class Format(StrEnum):
    onnx = "onnx"


def register(app: typer.Typer) -> None:
    app.command()(export)


def export(
    format: Annotated[Format, typer.Argument(help="onnx: for onnxruntime and others.", show_default=False)],
    run: RunArgument,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.onnx", help="The file, complete in itself.", show_default=False)
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a run's best model, its labels and its tokenizer to one file, for use without penstock and torch.

    Formats: onnx, with inputs input_ids and attention_mask of any batch and length, and float32 logits. The file is
    compared with the run, if onnxruntime is installed, before it gets its name; what uses it is printed.

    Example:  penstock export onnx run --out model.onnx
    """
    from penstock.engine.errors import ConfigError
    from penstock.engine.export.installed import check_installed
    from penstock.engine.output_file import check_output
    from penstock.engine.training.run_record import read_trained_record

    if out.suffix != ".onnx":
        raise ConfigError(f"--out {out}: name a file that ends in .onnx")
    read_trained_record(run)
    check_output(str(out), [], [run])
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists: name another file, or --overwrite it")
    check_installed("onnx")

    from penstock.engine.export.onnx_file import export_onnx

    exported = export_onnx(run, out)
    if (compared := exported.compared) is None:
        typer.echo("penstock: not compared with the run: onnxruntime is not installed", err=True)
    else:
        typer.echo(
            f"the same as the run on {compared.texts} generated texts of up to {compared.longest} tokens: logits "
            f"differ by {compared.difference:.1e} at most, {compared.allowed:.1e} is allowed"
        )
    typer.echo(f"written: {out}, {exported.size / 1e6:,.1f} MB, inputs {', '.join(exported.inputs)}; to use it:\n")
    typer.echo(exported.usage)
