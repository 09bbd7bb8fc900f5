"""A plugin of pytest: what each test of pytest-benchmark measured, as a row of `penstock bench`, as soon as it ends.

The rows go to the file descriptor of `--penstock-rows`, one JSON object a line. A test's fixture leaves in its
`extra_info["rounds"]` the seconds of each contestant in each round, penstock first.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.benchmarks.rounds import summary
from penstock.benchmarks.suite import OURS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--penstock-rows", type=int, help="the descriptor that rows are written to")
    parser.addoption("--penstock-rounds", type=int, help="rounds, instead of each test's own number")


def rounds(config: pytest.Config, own: int) -> int:
    """How many rounds a test makes."""
    return config.getoption("--penstock-rounds", default=None) or own


def name_of(item: pytest.Item) -> str:
    """Without what every one of them has: `test_` and that the peers take part."""
    name, _, parameters = item.name.removeprefix("test_").partition("[")
    kept = [part for part in parameters.rstrip("]").split("-") if part not in ("", "peers", "alone")]
    return " ".join([name.replace("_", " "), *kept])


def row_of(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name, "what": name, "shape": {}, "dtype": "", "work": None, "unit": ""}
    row |= {"seconds": times, "probe": [], "missing": {}}
    return row | summary(row)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    report = yield
    descriptor = item.config.getoption("--penstock-rows")
    if descriptor is not None and report.failed:
        _send(descriptor, {"failed": name_of(item), "why": " ".join(str(call.excinfo.value).split())[:300]})
    elif descriptor is not None and report.skipped:
        _send(descriptor, {"skipped": name_of(item), "why": " ".join(str(call.excinfo.value).split())[:300]})
    elif descriptor is not None and call.when == "call":
        name = name_of(item)
        benchmark = getattr(item, "funcargs", {}).get("benchmark")
        found = dict(getattr(benchmark, "extra_info", {}))
        times = found.pop("rounds", {})
        if "unit" in found:
            name += f", for {found['unit']}"
        if not times and getattr(benchmark, "stats", None) is not None:
            times = {OURS: list(benchmark.stats.stats.data)}
        if report.passed and times.get(OURS):
            _send(descriptor, row_of(name, times) | {"found": found})
    return report


def _send(descriptor: int, row: dict[str, Any]) -> None:
    os.write(descriptor, (json.dumps(row, default=float) + "\n").encode())
