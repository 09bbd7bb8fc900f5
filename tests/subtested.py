"""Tables of small cases that one test walks."""

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ParameterSet = type(pytest.param())


def as_subtests(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Callable], Callable]:
    """As `pytest.mark.parametrize`, but in one test: each case is a subtest, and one that fails is named.

    For cases of microseconds, of which pytest's own work would be the larger part. They share the test's fixtures, also
    those that pytest adds by itself, but for `monkeypatch`, which is undone after each, and `tmp_path`, which is an
    empty folder for each.
    """
    names = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else names
    table = list(cases)
    assert table, "there are no cases"

    def decorate(test: Callable) -> Callable:
        signature = inspect.signature(test)
        given = [each for name, each in signature.parameters.items() if name not in names]

        @functools.wraps(test)
        def walk(subtests: pytest.Subtests, **fixtures: Any) -> None:
            for number, case in enumerate(table):
                name, case = (case.id, case.values) if isinstance(case, ParameterSet) else (None, case)
                values = dict(zip(names, case if len(names) > 1 else [case], strict=True))
                with subtests.test(name, **values), pytest.MonkeyPatch.context() as patch:
                    own = {}
                    if "monkeypatch" in fixtures:
                        own["monkeypatch"] = patch
                    if "tmp_path" in fixtures:
                        own["tmp_path"] = Path(fixtures["tmp_path"]) / str(number)
                        own["tmp_path"].mkdir()
                    test(**{**fixtures, **own, **values})

        subtests = inspect.Parameter("subtests", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        others = [each for each in given if each.name != "subtests"]
        walk.__signature__ = signature.replace(parameters=[subtests, *others])  # type: ignore[attr-defined]
        return walk

    return decorate
