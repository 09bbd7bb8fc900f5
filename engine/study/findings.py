"""What a study found: everything that its report says, computed from its directory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.engine.data.clusters import cluster_file
from penstock.engine.data.store import Store
from penstock.engine.errors import RunError
from penstock.engine.statistics.resample import Drawn
from penstock.engine.study.answer import Answer, answer
from penstock.engine.study.break_even import BreakEven, break_even, equivalent_size
from penstock.engine.study.checks import Check, run_checks
from penstock.engine.study.costs import Cost, read_cost
from penstock.engine.study.curves import Curve, fit_curve
from penstock.engine.study.directory import planned_trials, read_study, trials_folder
from penstock.engine.study.existing import check_one_kind
from penstock.engine.study.external import ExternalFigures, external_figures
from penstock.engine.study.families import FAMILIES, REFERENCE, learns
from penstock.engine.study.money import Bill, Exchange, Prices, bills, exchanges
from penstock.engine.study.names import encoder_name
from penstock.engine.study.needs import Need, needs
from penstock.engine.study.paired import Key, Paired
from penstock.engine.study.plan import Plan, plan_for
from penstock.engine.study.reading import find_test_store, share_cut
from penstock.engine.study.table import Table
from penstock.engine.study.trials import read_results


@dataclass(frozen=True)
class Findings:
    """
    Attributes:
        study: the contents of study.json.
        curves: {family: its learning curve, or why there is none}.
        break_evens: {family: ...} of the families other than the encoder that learn from examples.
        equivalents: {family: {encoder's size: (size that the family needs, low, high)}}.
        costs: of the families that were measured.
        missing: trials that are planned and have no result yet.
        answer: in plain sentences. checks: what to mind.
        test: the test data; None where it is no longer there.
        prices: None where none was given; then there are no bills and exchanges either.
        needs: labels, texts, time and money, of each family and size.
        externals: predictions from elsewhere.
        plan: what the study was expected to take; None if it was not planned.
    """

    study: dict[str, Any]
    table: Table
    curves: dict[str, Curve | str]
    break_evens: dict[str, BreakEven]
    equivalents: dict[str, dict[int, tuple[float, float | None, float | None]]]
    costs: dict[str, Cost]
    missing: int
    answer: Answer
    checks: list[Check]
    prices: Prices | None
    bills: list[Bill]
    exchanges: list[Exchange]
    needs: list[Need]
    test: Store | None
    externals: list[ExternalFigures] = field(default_factory=list)
    plan: Plan | None = None

    def share_cut(self, tokens: int) -> float | None:
        """The share of test texts that are longer; None where the test data is no longer there."""
        return None if self.test is None else share_cut(self.test, tokens)

    @classmethod
    def of(cls, folder: Path) -> "Findings":
        """
        Raises:
            RunError: the folder holds no study, or one without a finished trial, or trials made from different things,
                or a trial's predictions are not those that it wrote.
            StoreError: the test rows' clusters are missing, or not of this test data.
        """
        study = read_study(folder)
        results = read_results(trials_folder(folder))
        check_one_kind(folder, study, results)
        clusters = cluster_file(folder / "data" / "test") if study.get("cluster") else None
        paired = Paired.of(trials_folder(folder), results, clusters)
        table = Table(results, paired)
        if not any(table.points(family) for family in table.families):
            raise RunError(f"{folder}: no trial of this study is done yet; run penstock study again to go on")
        accuracies = {
            family: {point.size: point.accuracies for point in table.points(family)} for family in table.families
        }
        curves = {
            family: fit_curve({size: _errors(values) for size, values in own.items()})
            for family, own in accuracies.items()
            if own and learns(family)
        }
        reference = accuracies.get(REFERENCE) or {}
        others = [family for family in table.families if family != REFERENCE and accuracies[family] and learns(family)]
        break_evens = {
            family: break_even(
                {point.size: point.gaps for point in table.points(family) if point.gaps},
                (curves[family], curves[REFERENCE]),
                drawn=_of(paired.gaps, family),
            )
            for family in others
            if reference
        }
        equivalents = {
            family: {
                size: equivalent_size(accuracies[family], target, drawn=_both(paired, accuracies, family, size))
                for size, target in reference.items()
            }
            for family in others
        }
        costs = {
            family: read_cost(path) for family in FAMILIES if (path := folder / "costs" / f"{family}.json").is_file()
        }
        encoder = encoder_name(study["identity"]["encoder"])
        prices = Prices.in_study(study)
        priced = [] if prices is None else bills(table, costs, prices)
        finished = {result.trial.name for result in results if result.status != "failed"}
        return cls(
            study=study,
            table=table,
            curves=curves,
            break_evens=break_evens,
            equivalents=equivalents,
            costs=costs,
            missing=len(set(planned_trials(study)) - finished),
            answer=answer(table, f"a fine-tuned {encoder}", break_evens, equivalents),
            checks=run_checks(study, table, costs),
            prices=prices,
            bills=priced,
            needs=needs(table, priced),
            exchanges=[] if prices is None else exchanges(table, costs, prices, equivalents),
            test=find_test_store(folder, study),
            externals=external_figures(
                folder / "external",
                trials_folder(folder),
                results,
                study.get("test", {}).get("fingerprint"),
                clusters,
            ),
            plan=plan_for(folder, study["identity"].get("overrides", [])),
        )


def _of(drawn: Mapping[Key, Drawn], family: str) -> dict[int, Drawn]:
    return {size: own for (name, size), own in drawn.items() if name == family}


def _both(
    paired: Paired, accuracies: Mapping[str, Mapping[int, dict[int, float]]], family: str, size: int
) -> tuple[dict[int, Drawn], Drawn] | None:
    """The draws of a family at all its sizes and of the reference at one; None unless there are all of them."""
    own, aim = _of(paired.accuracies, family), paired.accuracies.get((REFERENCE, size))
    return None if aim is None or accuracies[family].keys() - own.keys() else (own, aim)


def _errors(accuracies: dict[int, float]) -> dict[int, float]:
    return {seed: 1 - accuracy for seed, accuracy in accuracies.items()}
