"""One part in a process of its own, which the command starts: a crash or a hang ends that part alone.

python -m penstock.benchmarks.gpu.part NAME < context.json
"""

import sys

from penstock.benchmarks.gpu import parts, rehearsal
from penstock.benchmarks.gpu.context import WRONG, Context, WrongResultError, emit


def main(name: str) -> int:
    context = Context.from_json(sys.stdin.read())
    rehearsal.begin()
    try:
        parts.call(name, context)
    except WrongResultError as error:
        emit(kind="wrong", what=str(error))
        return WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
