"""Every claim about a GPU, measured: one JSON file, one page and a log, whatever fails on the way.

    python -m penstock.benchmarks.gpu --out results                       everything, within eight minutes
    python -m penstock.benchmarks.gpu --out results --only lstm           one part, after the tests that it needs
    python -m penstock.benchmarks.gpu --out results --only flashrnn --flashrnn ../flashrnn
    python -m penstock.benchmarks.gpu --out results --rehearse            all of it without a GPU, with planted faults

README.md beside this file says what each part measures. Exit codes: 2 wrong options, 11 no NVIDIA GPU, 12 something
was wrong, crashed or hung (it was switched off, everything else was measured), 13 a part failed or was cut off (the
others are in the results).
"""

import argparse
import sys
from pathlib import Path

from penstock.benchmarks.gpu.context import NO_GPU
from penstock.benchmarks.gpu.parts import PARTS, plan

CHECKOUTS = ("flashrnn", "haste")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m penstock.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results.json, report.html and log.txt")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=PARTS,
        metavar="PART",
        help=f"one of {', '.join(PARTS)}; repeatable",
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="the whole run's time, shared out (default 480)")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=("cuda", "triton"),
        help="leave a backend of ours out; repeatable",
    )
    for name in CHECKOUTS:
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"a checkout of {name}: its part is run too")
    parser.add_argument(
        "--smoke", action="store_true", help="no GPU: tiny sizes on the CPU, to run every line; no figures"
    )
    parser.add_argument("--rehearse", action="store_true", help="as --smoke, with faults planted in the backends")
    options = parser.parse_args(arguments)
    options.smoke = options.smoke or options.rehearse
    for name in options.only:
        needed = PARTS[name].checkout
        if needed and getattr(options, needed) is None:
            parser.error(f"part {name} needs a checkout of {needed}: --{needed} PATH")
    for name in CHECKOUTS:
        path = getattr(options, name)
        if path is not None and not path.is_dir():
            parser.error(f"--{name} {path}: no such folder")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    import torch

    if not options.smoke and not torch.cuda.is_available():
        print("penstock.benchmarks.gpu: no NVIDIA GPU here: nothing to measure", file=sys.stderr)
        return NO_GPU
    from penstock.benchmarks.gpu import rehearsal, runner

    checkouts = {name: str(path.resolve()) for name in CHECKOUTS if (path := getattr(options, name)) is not None}
    try:
        code = runner.run(
            plan(options.only, checkouts),
            options.out,
            options.seconds,
            without=options.without,
            checkouts=checkouts,
            smoke=options.smoke,
            faults=rehearsal.FAULTS if options.rehearse else (),
        )
    except ValueError as error:
        print(f"penstock.benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    print(f"{options.out / 'report.html'}, {options.out / 'results.json'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
