"""`penstock compare`: two classifiers on the same rows, whatever form their predictions come in."""

import csv
import datetime
import gzip
import itertools
import json
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine import cli
from penstock.engine.data.clusters import cluster_file, write_cluster_file
from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.sources import open_sources
from penstock.engine.data.store import Store
from penstock.engine.errors import PenstockError
from penstock.engine.statistics.resample import Drawn
from penstock.engine.statistics.verdict import verdict
from penstock.engine.study import compare_inputs
from penstock.engine.study.compare import Judged, Truth, compare
from penstock.engine.study.predictions import PredictionsRecorder

ROWS = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Reviews with a film for every five rows, and ids that are not the row numbers."""
    path = tmp_path_factory.mktemp("data") / "test.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "film", "text", "label"])
        for number, (text, label) in enumerate(generate_reviews(ROWS, 1)):
            writer.writerow([f"r{number * 7 % ROWS}", f"film {number // 5}", text, label])
    return path


@pytest.fixture(scope="module")
def truth(source) -> list[dict[str, str]]:
    return list(csv.DictReader(source.open()))


@pytest.fixture(scope="module")
def store(source, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    store = prepare(str(source), folder / "test", tokenizer="train:bpe:400", progress=False)
    write_cluster_file(cluster_file(store.path), store, open_sources(str(source)), "film")
    return store


def predicted(truth: list[dict[str, str]], accuracy: float, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [row["label"] if random.random() < accuracy else str(int(row["label"]) % 5 + 1) for row in truth]


def write(path: Path, rows: list[dict]) -> Path:
    """In the form that the file's ending names, as `predict` writes them."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".jsonl" in path.suffixes:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def labels(path: Path, values: list) -> Path:
    return write(path, [{"label": value, "probability": 0.5} for value in values])


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["compare", *map(str, arguments)], env={"COLUMNS": "300"})
    if isinstance(result.exception, PenstockError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("first", "second", "code", "words"),
    [
        (0.9, 0.6, 0, "verdict: A is better than B"),
        (0.6, 0.9, 20, "verdict: A is worse than B"),
        (0.8, 0.8, 21, "cannot tell A and B apart, nor within 1 point"),
    ],
)
def test_the_verdict_and_its_exit_code(source, truth, tmp_path, first, second, code, words):
    a, b = predicted(truth, first, 1), predicted(truth, second, 2)
    right = [np.array([row["label"] == own for row, own in zip(truth, each, strict=True)]) for each in (a, b)]
    found, output = run(labels(tmp_path / "a.csv", a), labels(tmp_path / "b.csv", b), "--data", source)
    assert found == code, output
    assert words in output
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert f"only A right: {only[0]} rows, only B right: {only[1]}" in output
    assert f"p = {binomtest(only[0], sum(only)).pvalue:.2g}" in output
    assert f"accuracy {100 * right[0].mean():.2f}%" in output
    assert f"A - B: {100 * (right[0].mean() - right[1].mean()):+.2f} points" in output


def test_no_worse_by_a_margin(source, truth, tmp_path):
    a, b = predicted(truth, 0.8, 1), predicted(truth, 0.8, 1)
    b[3] = truth[3]["label"]
    a[3] = str(int(truth[3]["label"]) % 5 + 1)
    files = labels(tmp_path / "a.csv", a), labels(tmp_path / "b.csv", b)
    code, output = run(*files, "--data", source, "--margin", 0.02)
    assert code == 0
    assert "A is no worse than B by 2 points" in output
    assert run(*files, "--data", source)[0] == 21, "one of 400 rows is seen in every eleventh test set where it is 1%"
    assert run(files[0], files[0], "--data", source)[0] == 0, "the same predictions are no worse by a point"
    assert run(files[0], files[0], "--data", source, "--margin", 0)[0] == 21, "400 rows cannot tell what others would"


@pytest.mark.slow
@as_subtests("ending, kind", itertools.product([".csv", ".tsv", ".jsonl", ".jsonl.gz", ".parquet"], [str, int, float]))
def test_every_form_of_predictions_is_read_alike(source, store, truth, tmp_path, ending, kind):
    a, b = predicted(truth, 0.9, 1), predicted(truth, 0.7, 2)
    first = labels(tmp_path / f"a{ending}", [kind(value) for value in a])
    second = labels(tmp_path / "b.csv", b)
    expected = run(labels(tmp_path / "plain.csv", a), second, "--data", source)[1].splitlines()[3:6]
    for data in (source, store.path):
        assert run(first, second, "--data", data)[1].splitlines()[3:6] == expected


def test_ids_say_which_row_a_prediction_is_of(source, truth, tmp_path):
    a, b = predicted(truth, 0.9, 1), predicted(truth, 0.7, 2)
    ordered = labels(tmp_path / "a.csv", a)
    mixed = [{"label": own, "id": row["id"], "number": row["id"][1:]} for own, row in zip(b, truth, strict=True)]
    mixed = [mixed[place] for place in np.random.default_rng(0).permutation(ROWS)]
    shuffled = write(tmp_path / "b.jsonl", mixed)
    expected = run(ordered, labels(tmp_path / "plain.csv", b), "--data", source)[1].splitlines()[3:]
    assert run(ordered, shuffled, "--data", source)[1].splitlines()[3:] == expected
    twice = write(tmp_path / "twice.csv", [*mixed[:-1], mixed[0]])
    code, message = run(ordered, twice, "--data", source)
    assert code == 3
    assert "two rows have the id" in message
    other = write(tmp_path / "other.csv", [*mixed[:-1], mixed[-1] | {"id": "r9999"}])
    code, message = run(ordered, other, "--data", source)
    assert code == 3
    assert f"no row has the id {mixed[-1]['id']!r}" in message


@pytest.mark.parametrize("prepared", [False, True])
def test_clusters_widen_the_interval(source, store, truth, tmp_path, prepared):
    a = [row["label"] if int(row["film"].split()[1]) % 3 else "9" for row in truth]
    a = [value if value != "9" else str(int(row["label"]) % 5 + 1) for value, row in zip(a, truth, strict=True)]
    b = predicted(truth, 0.6, 2)
    files = labels(tmp_path / "a.csv", a), labels(tmp_path / "b.csv", b)
    data = store.path if prepared else source

    def width(output: str) -> float:
        low, high = re.search(r"A .* accuracy .*% \(([\d.]+) to ([\d.]+)\)", output).groups()
        return float(high) - float(low)

    alone, together = run(*files, "--data", data)[1], run(*files, "--data", data, "--cluster", "film")[1]
    assert width(together) > 1.8 * width(alone)
    assert "in 80 groups by 'film'" in together
    assert "the exact test of signs by groups" in together


@pytest.mark.slow
@as_subtests("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_flips_are_listed_and_written(source, store, truth, tmp_path, ending):
    a, b = predicted(truth, 0.9, 1), predicted(truth, 0.5, 2)
    files = labels(tmp_path / "a.csv", a), labels(tmp_path / "b.csv", b)
    out = tmp_path / f"flips{ending}"
    _, output = run(*files, "--data", source, "--flips", out)
    expected = [number for number in range(ROWS) if a[number] != b[number]]
    assert f"flips: {len(expected)} rows that the two predict differently, the first 20:" in output
    assert len(re.findall(r"^  row \d+: ", output, re.MULTILINE)) == 20
    if ending == ".parquet":
        found = pq.read_table(out).to_pylist()
    elif ending == ".jsonl":
        found = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        found = list(csv.DictReader(out.open(newline=""), delimiter="\t" if ending == ".tsv" else ","))
    assert sorted(int(one["row"]) for one in found) == expected
    for one in found:
        number = int(one["row"])
        true = truth[number]["label"]
        assert (one["text"], one["truth"], one["a"], one["b"]) == (truth[number]["text"], true, a[number], b[number])
        assert one["right"] == ("A" if a[number] == true else "B" if b[number] == true else "neither")
    # of a store, texts are decoded
    run(*files, "--data", store.path, "--flips", out)
    assert out.stat().st_size > 1000


def trial(path: Path, store: Store, given: list[str], rows: np.ndarray | None = None, test: str | None = None) -> Path:
    import torch

    rows = np.arange(store.num_examples) if rows is None else rows
    recorder = PredictionsRecorder(rows, store.num_labels)
    classes = np.array([store.label_names.index(given[row]) for row in rows])
    scores = np.eye(store.num_labels, dtype=np.float32)[classes]
    recorder.add(torch.from_numpy(rows), torch.from_numpy(store.labels[rows].copy()), torch.from_numpy(scores))
    names, test = store.label_names, test or store.fingerprint
    recorder.write(path, test=test, max_test=None, test_rows=store.num_examples, label_names=names)
    return path


def test_trials_of_a_study_are_compared(source, store, truth, tmp_path):
    a, b = predicted(truth, 0.9, 1), predicted(truth, 0.7, 2)
    plain = labels(tmp_path / "a.csv", a), labels(tmp_path / "b.csv", b)
    expected = run(*plain, "--data", source)[1].splitlines()[3:6]
    second = trial(tmp_path / "b.parquet", store, b)
    for data in (source, store.path):
        assert run(plain[0], second, "--data", data)[1].splitlines()[3:6] == expected
    some = np.sort(np.random.default_rng(0).permutation(ROWS)[:150])
    part = trial(tmp_path / "part.parquet", store, a, some)
    code, output = run(part, second, "--data", store.path)
    assert code == 0
    assert "compared on the 150 of 400 rows" in output
    assert "\n150 test rows" in output
    other = trial(tmp_path / "other.parquet", store, a, some[:-1])
    code, message = run(part, other, "--data", store.path)
    assert code == 3
    assert "predicted different rows" in message
    foreign = trial(tmp_path / "foreign.parquet", store, a, test="f" * 64)
    code, message = run(foreign, second, "--data", store.path)
    assert code == 5
    assert "predictions of another test store" in message


MOMENTS = [datetime.datetime(2024, 1, 1, hour, tzinfo=datetime.UTC) for hour in range(3)]
# fmt: off
COLUMNS = {
    "small integers": ([1, 2, 3], pa.int8()),
    "integers in floats": ([1.0, 2.0, 3.0], pa.float64()),
    "halves": ([0.1, 0.5, 3.0], pa.float16()),
    "single precision": ([0.1, 0.7, 3.0], pa.float32()),
    "decimals": ([Decimal("1.00"), Decimal("2.50"), Decimal("3.00")], pa.decimal128(5, 2)),
    "truth values": ([True, False, True], pa.bool_()),
    "days": ([moment.date() for moment in MOMENTS[:1]] * 2 + [datetime.date(2024, 2, 1)], pa.date32()),
    "moments": (MOMENTS, pa.timestamp("ns", "UTC")),
    "moments without a zone": ([moment.replace(tzinfo=None) for moment in MOMENTS], pa.timestamp("us")),
    "durations": ([datetime.timedelta(hours=hour) for hour in range(3)], pa.duration("s")),
    "coded texts": (["a", "b", "c"], pa.dictionary(pa.int8(), pa.string())),
    "coded numbers": ([1, 2, 3], pa.dictionary(pa.int32(), pa.int64())),
}
# fmt: on


@as_subtests("values, kind", [pytest.param(*case, id=name) for name, case in COLUMNS.items()])
def test_a_typed_column_of_labels_is_read_as_that_of_the_data(values, kind, tmp_path):
    """What is predicted is the truth, in a column of the same type."""
    column = pa.array(values * 20, kind)
    pq.write_table(pa.table({"text": [f"text {row}" for row in range(60)], "label": column}), tmp_path / "data.parquet")
    pq.write_table(pa.table({"label": column}), tmp_path / "a.parquet")
    _, output = run(*[tmp_path / "a.parquet"] * 2, "--data", tmp_path / "data.parquet")
    assert output.count("accuracy 100.00%") == 2, output


def test_a_class_that_no_test_row_has_may_be_predicted(store, truth, tmp_path):
    """Where a store or a trial knows it; elsewhere it may as well be a slip."""
    few = [row for row in truth if row["label"] != "5"]
    source = write(tmp_path / "few.csv", [{"text": row["text"], "label": row["label"]} for row in few])
    fewer = prepare(str(source), tmp_path / "few", like=store.path, progress=False)
    truly = [row["label"] for row in few]
    file = labels(tmp_path / "a.csv", ["5.0", *truly[1:]])
    made = trial(tmp_path / "b.parquet", fewer, truly)
    for others, data in itertools.product(([made], [file]), (source, fewer.path)):
        code, output = run(file, *others, "--data", data)
        if others == [file] and data == source:
            assert code == 3
            assert "a.csv: row 1: " in output
            assert "no class '5.0' (1, 2, 3, 4); if no test row has it, give the data as a store" in output
        else:
            assert f"accuracy {100 * (1 - 1 / len(few)):.2f}%" in output, output


def test_labels_are_read_as_the_training_datas_were(tmp_path):
    """Beside a word 1.0 is a word too, also in test data that happens to have numbers alone."""
    for name, values in (("train", ["1.0", "beta"]), ("test", ["1.0", "1.0"])):
        write(tmp_path / f"{name}.csv", [{"text": f"text {row}", "label": values[row % 2]} for row in range(40)])
    train = prepare(str(tmp_path / "train.csv"), tmp_path / "train", tokenizer="train:bpe:300", progress=False)
    test = prepare(str(tmp_path / "test.csv"), tmp_path / "test", like=train.path, progress=False)
    assert test.label_names == ["1.0", "beta"]
    made = trial(tmp_path / "a.parquet", test, ["1.0"] * 39 + ["beta"])
    file = labels(tmp_path / "b.csv", ["beta", *["1.0"] * 39])
    for data in (tmp_path / "test.csv", test.path):
        assert run(made, file, "--data", data)[1].count("accuracy 97.50%") == 2


# the classes that a trial knows, the labels of the test data, and what each of them is to be read as
SPELLED = {
    "a version of its own": (["1.1", "1.2", "beta"], ["1.1", "1.2", "beta", "1.10"], ["1.1", "1.2", "beta", "1.10"]),
    "without the word": (["1.1", "1.2", "beta"], ["1.1", "1.2", "1.10"], ["1.1", "1.2", "1.10"]),
    "a word in the data alone": (["1.1", "1.2"], ["1.1", "1.2", "beta", "1.10"], ["1.1", "1.2", "beta", "1.10"]),
    "numbers": (["1", "2"], ["1.0", "2.00", "2", "3.0"], ["1", "2", "2", "3"]),
    "numbers and a word": (["1", "2"], ["1.0", "2.0", "unsure"], ["1", "2", "unsure"]),
    "truth values": (["false", "true"], ["TRUE", "False", "true"], ["true", "false", "true"]),
}


def test_classes_of_two_runs_that_one_of_them_tells_apart():
    found = compare_inputs._Classes()
    for names in (["1.1", "1.2"], ["1.1", "1.10", "beta"]):
        found.add(names)
    found.add_spelled(["1.10", "beta"])
    assert found.numbers_of(["1.1", "1.2"]).tolist() == [0, 1]
    assert found.numbers_of(["1.1", "1.10", "beta"]).tolist() == [0, 2, 3]
    assert [found("1.10"), found("1.20")] == [2, 1]


@as_subtests("known, spelled, classes", [pytest.param(*case, id=name) for name, case in SPELLED.items()])
def test_what_is_one_class_is_a_fact_of_the_whole_column(known, spelled, classes, tmp_path):
    """A run's classes and the test data's; a file of predictions is read as these are."""
    count = 5 * len(spelled)
    write(
        tmp_path / "data.csv", [{"text": f"text {row}", "label": spelled[row % len(spelled)]} for row in range(count)]
    )
    found = compare_inputs._Classes()
    found.add(known)
    found.add_spelled(set(spelled))
    assert [found.names[found(one)] for one in spelled] == classes
    assert [found.names[number] for number in found.numbers_of(known)] == known
    file = labels(tmp_path / "a.csv", [spelled[row % len(spelled)] for row in range(count)])
    other = labels(tmp_path / "b.csv", [spelled[0]] * count)
    same = [spelled[row % len(spelled)] == spelled[0] for row in range(count)]
    if "1.10" in spelled and "beta" in spelled:
        output = run(file, other, "--data", tmp_path / "data.csv")[1]
        assert "accuracy 100.00%" in output
        assert f"accuracy {100 * np.mean(same):.2f}%" in output


@pytest.mark.slow
def test_a_class_that_a_run_does_not_know_is_none_of_its_own(tmp_path):
    words = {"1.1": "alpha red", "1.2": "gamma blue", "beta": "delta green"}
    rows = [{"text": f"{words[label]} w{row}", "label": label} for row in range(40) for label in words]
    source = write(tmp_path / "train.csv", rows)
    train = prepare(str(source), tmp_path / "train", tokenizer="train:bpe:300", progress=False)
    arguments = ["train", "--model", "bag", "--train", train.path, "--out", tmp_path / "run", "training.max_steps=20"]
    assert CliRunner().invoke(cli.app, list(map(str, arguments))).exit_code == 0
    data = write(tmp_path / "data.csv", [*rows[:30], *[{"text": "alpha red w1", "label": "1.10"}] * 10])
    _, output = run(tmp_path / "run", tmp_path / "run", "--data", data)
    assert "run does not know the class '1.10' (10 rows): they count as wrong" in output
    assert "accuracy 75.00%" in output


@pytest.fixture(scope="module")
def runs(source, store, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    train = prepare("synthetic:reviews?n=300&seed=3", folder / "train", like=store.path, progress=False)
    for name, epochs in (("a", 3), ("b", 1)):
        arguments = ["train", "--model", "lstm", "--train", train.path, "--out", folder / name]
        settings = ["model.hidden_size=8", "model.num_layers=1", f"training.epochs={epochs}"]
        result = CliRunner().invoke(cli.app, [*map(str, arguments), *settings])
        assert result.exit_code == 0, result.output
    return folder / "a", folder / "b"


@pytest.mark.slow
def test_runs_and_their_predictions_are_the_same(source, store, runs, tmp_path):
    for form in ("csv", "parquet"):
        out = tmp_path / f"a.{form}"
        assert CliRunner().invoke(cli.app, ["predict", str(runs[0]), str(source), "--out", str(out)]).exit_code == 0
        renamed = out
        if form == "csv":  # the truth's column, carried along, comes out under another name
            assert "source_label" in out.read_text().splitlines()[0]
        for data in (source, store.path):
            code, output = run(runs[0], renamed, "--data", data)
            assert code == 0, output
            assert "flips: none" in output
    on_source, on_store = (run(*runs, "--data", data) for data in (source, store.path))
    assert on_source[0] == on_store[0]
    assert on_source[1].splitlines()[:6] == on_store[1].splitlines()[:6]


# fmt: off
def bad_inputs(folder: Path, truth, source, store) -> dict[str, tuple[list, int, str]]:
    good = labels(folder / "good.csv", predicted(truth, 0.8, 1))
    values = predicted(truth, 0.8, 1)
    (folder / "noise.parquet").write_bytes(b"PAR1 not a table PAR1")
    (folder / "run").mkdir()
    (folder / "empty.csv").write_text("")
    column = pa.array(values)
    for name, names in (("labels", ["label", "label"]), ("ids", ["label", "id", "id"])):
        pq.write_table(pa.table([column] * len(names), names=names), folder / f"{name}.parquet")
    damaged = trial(folder / "damaged.parquet", store, values)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    short = labels(folder / "short.csv", values[:-1])
    return {
        "shorter": ([good, short], 3, "short.csv: 399 rows, and .*test.csv has 400"),
        "longer": ([labels(folder / "long.csv", [*values, "1"]), good], 3, "long.csv: 401 rows"),
        "unknown": ([good, labels(folder / "u.csv", [*values[:-1], "goood"])], 3, "u.csv: row 400: .* no class 'go"),
        "no_prediction": ([good, labels(folder / "n.csv", [*values[:-1], ""])], 3, "n.csv: row 400: 'label' is empty"),
        "null": ([good, labels(folder / "n.jsonl", [*values[:-1], None])], 3, "n.jsonl: row 400: 'label' is null"),
        "lists": ([good, labels(folder / "l.jsonl", [*values[:-1], ["1"]])], 3, "l.jsonl: row 400: 'label' is a list"),
        "no_column": ([good, write(folder / "c.csv", [{"klass": v} for v in values])], 3, "c.csv: no column 'label'"),
        "in_parquet": ([write(folder / "c.parquet", [{"klass": v} for v in values]), good], 3, "no column 'label'"),
        "two_columns": ([folder / "labels.parquet", good], 3, "labels.parquet: two columns are called 'label'; rename"),
        "two_ids": ([good, folder / "ids.parquet"], 3, "ids.parquet: two columns are called 'id'; rename one of them"),
        "no_file": ([good, folder / "nope.csv"], 3, "nope.csv: no such run or file of predictions"),
        "no_run": ([folder / "run", good], 7, "holds no run"),
        "another_form": ([good, write(folder / "p.xlsx", [{"label": v} for v in values])], 3, "p.xlsx: predictions"),
        "no_parquet": ([good, folder / "noise.parquet"], 3, "noise.parquet: damaged"),
        "damaged_trial": ([damaged, good], 3, "damaged.parquet: damaged"),
        "empty": ([good, folder / "empty.csv"], 3, "empty.csv: empty"),
        "no_data": ([good, good, "--data", folder / "nope.csv"], 3, "nope.csv: no such file"),
        "no_id": ([good, good, "--id", "number"], 3, "no column 'number'"),
        "no_cluster": ([good, good, "--cluster", "flim"], 3, "no column 'flim'"),
        "store_cluster": ([good, good, "--data", store.path, "--cluster", "flim"], 5, "the clusters of column 'film'"),
        "store_text": ([good, good, "--data", store.path, "--text", "t"], 6, "is a store: --text"),
        "flips_form": ([good, good, "--flips", folder / "f.txt"], 6, "the ending names the format"),
        "flips_input": ([good, good, "--flips", good], 6, "which is being read"),
        "margin": ([good, good, "--margin", "3"], 2, "margin"),
    }


# fmt: on
def test_what_is_wrong_is_one_line(source, store, truth, tmp_path):
    for name, (arguments, code, message) in bad_inputs(tmp_path, truth, source, store).items():
        data = [] if "--data" in arguments else ["--data", source]
        found, output = run(*arguments, *data)
        assert found == code, (name, found, output)
        assert re.search(message, output), (name, output)
        assert code == 2 or len(output.splitlines()) == 1, name


def test_exit_codes_are_no_errors():
    from penstock.engine import errors
    from penstock.engine.study.compare import EXIT_CODES

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PenstockError)]
    taken = {kind.exit_code for kind in kinds} | {2, 130, 143}
    assert EXIT_CODES["better"] == EXIT_CODES["no worse"] == 0
    assert len({EXIT_CODES["worse"], EXIT_CODES["cannot tell"]} - taken) == 2


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [100, 400])
def test_equal_classifiers_are_rarely_told_apart(pairs):
    """Pairs of equal accuracy on 300 rows: an alarm in about one of twenty."""
    alarms = 0
    for number in range(pairs):
        random = np.random.default_rng(number)
        shared = random.normal(0, 1, 300)
        own = [(shared + random.normal(0.5, 1, 300) > 0).astype(np.int64) for _ in range(2)]
        truth = Truth("t", np.ones(300, np.int64), ["0", "1"], None, lambda rows: [])
        found = compare(truth, Judged("a", None, own[0]), Judged("b", None, own[1]))
        alarms += found.verdict.kind in ("better", "worse")
    assert alarms / pairs < 0.05 + 3 * (0.05 * 0.95 / pairs) ** 0.5  # three standard deviations


@pytest.mark.parametrize("clusters", [None, np.arange(300) // 3], ids=["rows", "groups"])
def test_a_verdict_is_one_that_the_exact_test_supports(clusters):
    """Four rows that all speak for one side are no proof (p = 0.12), though few resamples have none of them."""
    for differ in range(9):
        ours = np.ones(300, np.int64)
        ours[::9][:differ] = 0
        truth = Truth("t", ours, ["0", "1"], clusters, lambda rows: [], "film")
        found = compare(truth, Judged("a", None, ours), Judged("b", None, np.ones(300, np.int64)))
        assert (found.verdict.kind == "better") == (found.pairs.p_value < 0.05) == (differ >= 6)
        assert (found.difference.interval[0] > 0) == (differ >= 6)


@pytest.mark.parametrize(("count", "told"), [(29, True), (30, False)])
def test_few_groups_are_told(count, told):
    ours = np.ones(300, np.int64)
    truth = Truth("t", ours, ["0", "1"], np.arange(300) % count, lambda rows: [], "film")
    found = compare(truth, Judged("a", None, ours), Judged("b", None, ours))
    said = f"the rows belong to {count} groups by 'film': intervals that rest on fewer than 30 are rough"
    assert any(said in note for note in found.notes) == told


def test_a_margin_of_nothing_holds_where_there_is_no_difference():
    assert verdict(Drawn(0.0, np.zeros(100), 1, 5, 5), "A", "B", 0.0).kind == "no worse"


def keyed(path: Path, values: list[str], keys: dict[str, list], order: np.ndarray) -> Path:
    """Predictions beside these columns, in another order."""
    rows = [{"label": own, **{name: key[place] for name, key in keys.items()}} for place, own in enumerate(values)]
    return write(path, [rows[place] for place in order])


NUMBERS, IN_ORDER = list(range(ROWS)), "its rows are taken for the test rows in their order"


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("on_store", "columns", "ordered", "said"),
    [
        (False, ["id"], False, ""),
        (False, ["id", "row"], False, ""),
        (False, ["row"], False, ""),
        (True, ["row"], False, ""),
        (True, ["id", "row"], False, ""),
        (True, ["id"], True, f"is a store, which keeps no such column: {IN_ORDER}"),
        ("plain", ["id"], True, f"has no such column: {IN_ORDER}"),
        (False, [], True, ""),
        (True, [], True, ""),
    ],
)
def test_which_rows_are_matched_how(source, store, truth, tmp_path, ending, on_store, columns, ordered, said):
    a, b = predicted(truth, 0.9, 1), predicted(truth, 0.7, 2)
    keys = {"id": [row["id"] for row in truth], "row": NUMBERS}
    order = np.arange(ROWS) if ordered else np.random.default_rng(0).permutation(ROWS)
    data = store.path if on_store is True else source
    if on_store == "plain":
        data = tmp_path / "data.csv"
        data.write_text(source.read_text().replace("id,", "other,", 1))
    plain = [
        keyed(tmp_path / f"{name}.csv", own, {"row": NUMBERS}, np.arange(ROWS)) for name, own in (("a", a), ("b", b))
    ]
    expected = [line for line in run(*plain, "--data", data)[1].splitlines() if line.startswith(("A - B", "verdict"))]
    given = keyed(tmp_path / f"given{ending}", b, {name: keys[name] for name in columns}, order)
    output = run(plain[0], given, "--data", data)[1]
    assert [line for line in output.splitlines() if line.startswith(("A - B", "verdict"))] == expected
    assert (f"{given}: its column 'id' is not used, as {data} {said}" in output) == bool(said)
    assert ("in their order" in output) == bool(said)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (range(1, ROWS + 1), "no row has the row number '0', which"),
        ([0, *range(ROWS - 1)], "two rows have the row number '0'"),
    ],
)
def test_row_numbers_that_are_none(source, truth, tmp_path, rows, message):
    given = keyed(tmp_path / "a.csv", predicted(truth, 0.9, 1), {"row": list(rows)}, np.arange(ROWS))
    code, output = run(given, given, "--data", source)
    assert (code, message in output) == (3, True), output


def test_a_row_column_of_both_is_theirs(truth, tmp_path):
    """Whatever it holds."""
    data = write(tmp_path / "data.csv", [{"row": f"r{place * 7 % ROWS}", **one} for place, one in enumerate(truth)])
    data.write_text(data.read_text().replace("row,id,", "row,other,", 1))
    keys = [f"r{place * 7 % ROWS}" for place in range(ROWS)]
    right = [row["label"] for row in truth]
    given = keyed(tmp_path / "a.csv", right, {"row": keys}, np.random.default_rng(0).permutation(ROWS))
    assert "accuracy 100.00%" in run(given, given, "--data", data)[1]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_an_id_inside_of_objects(source, truth, tmp_path, ending):
    nested = [{"label": row["label"], "text": row["text"], "ticket": {"id": row["id"]}} for row in truth]
    data = write(tmp_path / f"data{ending}", nested)
    given = write(tmp_path / f"given{ending}", [nested[place] for place in np.random.default_rng(0).permutation(ROWS)])
    assert "accuracy 100.00%" in run(given, given, "--data", data, "--id", "ticket.id")[1]
    assert "accuracy 100.00%" not in run(given, given, "--data", data)[1]
    code, message = run(given, given, "--data", data, "--id", "ticket.idd")
    assert code == 3
    assert "no column 'ticket.idd'; in 'ticket' there are: id" in message
