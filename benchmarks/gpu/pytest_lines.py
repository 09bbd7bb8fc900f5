"""A pytest plugin for the GPU benchmark: it selects the tests of one kernel and reports each as it begins and ends.

    pytest -p penstock.benchmarks.gpu.pytest_lines --kernel lstm/cuda --shard 0/2 --lines 5 FILE...

A test names its operation by `@pytest.mark.kernel("lstm")`; its backend is the parameter `backend`, or the mark's
second argument. What has no mark belongs to the kernel "others".
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from penstock.benchmarks.gpu import rehearsal

OTHERS = "others"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("penstock's GPU benchmark")
    group.addoption("--kernel", help="operation/backend: run its tests alone")
    group.addoption("--shard", default="0/1", help="I/N: of those every Nth, from the Ith")
    group.addoption("--but", metavar="FILE", help="without the tests that FILE names, one a line")
    group.addoption("--lines", type=int, metavar="FD", help="where to report, a line of JSON each")


def pytest_configure(config: pytest.Config) -> None:
    rehearsal.begin()
    if config.getoption("--lines") is not None:
        config.pluginmanager.register(Lines(config.getoption("--lines")))


def kernel_of(item: pytest.Item) -> str:
    """operation/backend"""
    mark = item.get_closest_marker("kernel")
    if mark is None:
        return OTHERS
    operation, *backend = mark.args
    return f"{operation}/{backend[0] if backend else item.callspec.params['backend']}"  # type: ignore[attr-defined]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--kernel")
    if wanted is None:
        return
    place, count = map(int, config.getoption("--shard").split("/"))
    file = config.getoption("--but")
    done = Path(file).read_text().splitlines() if file else []
    mine = [item for item in items if kernel_of(item) == wanted][place::count]
    chosen = [item for item in mine if item.nodeid not in done]
    kept = set(map(id, chosen))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = chosen


class Lines:
    """{"test": name}, when it begins; with "outcome", "message" and "seconds" when it has ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._began = 0.0
        self._outcome, self._message = "passed", ""

    def _write(self, **line: Any) -> None:
        os.write(self._descriptor, (json.dumps(line) + "\n").encode())

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began, self._outcome, self._message = time.monotonic(), "passed", ""
        self._write(test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash else str(report.longrepr)
            self._outcome, self._message = "failed", next(iter(message.splitlines()), "")[:300]
        elif report.skipped and self._outcome == "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._outcome, self._message = "skipped", reason.removeprefix("Skipped: ")[:300]

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        seconds = round(time.monotonic() - self._began, 2)
        self._write(test=nodeid, outcome=self._outcome, message=self._message, seconds=seconds)
