"""What each family needs for its accuracy: labels, texts without labels, processor time, money."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.engine.study.families import learns
from penstock.engine.study.money import Bill
from penstock.engine.study.table import Table


@dataclass(frozen=True)
class Need:
    """What one family at one size needs, means over seeds.

    Attributes:
        labels, unlabelled_texts: how many.
        cpu_hours: of all threads, to make its model: training, that of its teacher and what the teacher reads, and its
            pretraining; None where a trial did not note it.
        money: its bill, predictions included; None without prices, or where the bill has no sum.
        accuracy: a share.
    """

    family: str
    size: int
    labels: int
    unlabelled_texts: float
    cpu_hours: float | None
    money: float | None
    accuracy: float


def needs(table: Table, bills: Sequence[Bill]) -> list[Need]:
    """One for every family that learns, at every size that it was trained on."""
    sums: Mapping[tuple[str, float], float | None] = {(bill.family, bill.size): bill.total for bill in bills}
    found = []
    for family in filter(learns, table.families):
        for point in table.points(family):
            done = [trial for trial in table.trials(family, point.size) if trial.status == "done"]
            spent = [trial.all_cpu_seconds for trial in done]
            known = [seconds for seconds in spent if seconds is not None]
            # the same texts serve a pretraining and a teacher
            texts = [max(one.texts if one else 0 for one in (trial.taught, trial.pretrained)) for trial in done]
            assert point.accuracy is not None
            found.append(
                Need(
                    family=family,
                    size=point.size,
                    labels=point.size,
                    unlabelled_texts=sum(texts) / len(texts),
                    cpu_hours=sum(known) / len(known) / 3600 if len(known) == len(spent) else None,
                    money=sums.get((family, point.size)),
                    accuracy=point.accuracy.mean,
                )
            )
    return found
