"""Fields inside of objects are read as columns of that name are, in every form: what a dotted name means, and where."""

import itertools
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine import cli
from penstock.engine.data.clusters import carried_values, read_clusters
from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.sources import PLAIN_READING, BadRow, Reading, open_source
from penstock.engine.data.sources.fields import LISTED, Names, objects_in
from penstock.engine.data.sources.text import SAMPLE_LINES
from penstock.engine.errors import SourceError

ABSENT = object()
NO_OBJECTS = ["a text", 7, ["a"], True]
TICKETS = [
    {"subject": "größe, 電影", "body": "its\nbody"},
    {"subject": "only"},
    {"body": "only"},
    {"subject": None, "body": ""},
    {"subject": "", "body": None},
    {},
    None,
    ABSENT,
    *NO_OBJECTS,
]
DEEP = {"a": {"b": {"note": "deep", "stars": 3, "more.than": "a dot"}}, "tags": ["x", "y"], "said": "x|y"}
METAS = [
    DEEP,
    {"a": {"b": {"note": "other", "stars": 1}}, "tags": [], "said": ""},
    {"a": {"b": {}}, "tags": ["x", "x"], "said": "z"},
    {"a": {"b": None}, "tags": None, "said": None},
    {"a": {}},
    {"a": None},
    {},
    None,
    ABSENT,
    *({"a": value} for value in NO_OBJECTS),
    *({"a": {"b": value}} for value in NO_OBJECTS),
    *NO_OBJECTS,
]
FIELDS = {
    "ticket.subject": pa.string(),
    "ticket.body": pa.string(),
    "meta.a.b.note": pa.string(),
    "meta.a.b.stars": pa.int64(),
    "meta.a.b.more.than": pa.string(),
    "meta.tags": pa.list_(pa.string()),
    "meta.said": pa.string(),
}
STEPS = {name: tuple(name.split(".")) for name in FIELDS} | {"meta.a.b.more.than": ("meta", "a", "b", "more.than")}
PLAIN = {"id": pa.string(), "label": pa.int64()}
INNER = pa.struct({"note": pa.string(), "stars": pa.int64(), "more.than": pa.string()})
META = pa.struct({"a": pa.struct({"b": INNER}), "tags": pa.list_(pa.string()), "said": pa.string()})
TICKET = pa.struct({"subject": pa.string(), "body": pa.string()})
NESTED = pa.schema([*PLAIN.items(), ("ticket", TICKET), ("meta", META)])
FLAT = pa.schema([*PLAIN.items(), *FIELDS.items()])

TEXTS = [
    "ticket.subject",
    "meta.a.b.note",
    "meta.a.b.more.than",
    "ticket.subject+ticket.body",
    "ticket.subject + meta.a.b.note + id",
    "ticket.subject,ticket.body",
    "id,ticket.body",
    "ticket.subject+ticket.body, meta.a.b.note",
]
LABELS = [("label", None), ("meta.a.b.stars", None), ("meta.tags", None), ("meta.said", "|"), (None, None)]
FORMS = ["jsonl", "parquet", "arrow", "stream.arrow", "table", "sliced", "dataset"]


def records() -> tuple[list[dict], list[dict]]:
    """Rows with objects, and the same with a column of its own for each of the fields."""
    draw = random.Random(0)
    pairs = [(TICKETS[0], DEEP), *itertools.product(TICKETS, METAS[:4]), *itertools.product(TICKETS[:3], METAS)]
    draw.shuffle(rest := pairs[1:])
    nested = []
    for number, (ticket, meta) in enumerate([pairs[0], *rest]):
        objects = {"ticket": ticket, "meta": meta}
        row = {"id": f"row {number}", "label": number % 3}
        nested.append(row | {name: value for name, value in objects.items() if value is not ABSENT})
    return nested, [flattened(row) for row in nested]


def flattened(row: dict) -> dict:
    flat = {name: row[name] for name in PLAIN}
    for name, (*outer, last) in STEPS.items():
        value = row
        for step in outer:
            value = value.get(step, ABSENT) if isinstance(value, dict) else value if value is None else ABSENT
        if value is None:
            flat[name] = None
        elif isinstance(value, dict) and last in value:
            flat[name] = value[last]
    return flat


def only_objects(row, kind: pa.DataType | pa.Schema):
    """What Arrow can hold of it: null in place of what is no object."""
    if not isinstance(row, dict):
        return None
    structs = {field.name: field.type for field in kind if pa.types.is_struct(field.type)}
    return {name: only_objects(value, structs[name]) if name in structs else value for name, value in row.items()}


def source_of(form: str, rows: list[dict], schema: pa.Schema, folder, name: str):
    """What `open_source` takes."""
    path = folder / f"{name}.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)
    table = pa.Table.from_pylist([only_objects(row, schema) for row in rows], schema)
    if form == "parquet":
        pq.write_table(table, path, row_group_size=11)
    elif form == "sliced":
        return pa.concat_tables([table, table]).combine_chunks().slice(len(table))
    elif form == "dataset":
        datasets = pytest.importorskip("datasets")
        return datasets.Dataset(table)
    elif form == "table":
        return table
    else:
        with (pa.ipc.new_stream if "stream" in form else pa.ipc.new_file)(path, schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return str(path)


def read(given, text: str, label: str | None, separator: str | None, carried: list[str]) -> list:
    """Texts, labels, places and bad rows, then the values that are carried."""
    reading = PLAIN_READING if separator is None else Reading(label_separator=separator)
    source = open_source(given, text=text, label=label, need_label=label is not None, reading=reading)
    if carried:
        source.carry(carried)
        assert source.carried_schema().names == carried
    found: list = [(source.text, source.label, source.multi_label), [], [], [], []]
    values: list[list] = [[] for _ in carried]
    for rows in source.rows():
        for place, part in enumerate([rows.texts, rows.labels, rows.positions, rows.bad], 1):
            found[place] += part
        for name, column in zip(carried, values, strict=True):
            column += carried_values(rows.carried, name, len(rows.texts) + len(rows.bad))
    return [*found, values]


@as_subtests("form", FORMS)
def test_a_field_is_read_as_a_column_of_its_name_is(tmp_path, form):
    nested, flat = records()
    given = source_of(form, nested, NESTED, tmp_path, "nested")
    expected = source_of(form, flat, FLAT, tmp_path, "flat")
    for text, (label, separator) in itertools.product(TEXTS, LABELS):
        for carried in ([], ["meta.a.b.stars", "id", "ticket.subject", "meta.tags"]):
            found = read(given, text, label, separator, carried)
            assert found == read(expected, text, label, separator, carried), (text, label, carried)
            assert len(found[1]) >= 3, (text, label)
            assert len(found[3]) == len(found[1])
    found = read(given, "ticket.subject+meta.a.b.note", "meta.a.b.stars", None, ["ticket"])
    assert (found[1][0], found[2][0]) == ("größe, 電影\ndeep", "3")
    objects = [only_objects(row, NESTED) for row in nested]
    rows = nested if form == "jsonl" else objects
    written = [{"subject": None, "body": None} | (row["ticket"] or {}) if row.get("ticket") is not None else None
               for row in objects]  # fmt: skip
    assert found[5] == [
        [row.get("ticket") for row in rows] if form == "jsonl" else written
    ]  # whole, as it stands there


def test_reasons_say_what_is_missing(tmp_path):
    tickets = ['{"subject": "a"}', "null", '{"subject": null}', "{}", '"text"', '{"subject": {"subject": "a"}}']
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"label": 1, "ticket": {ticket}}}\n' for ticket in tickets) + '{"label": 1}\n')
    (rows,) = open_source(str(path), text="ticket.subject").rows()
    assert (rows.texts, rows.positions) == (["a"], [1])
    assert [(row.position, row.reason) for row in rows.bad] == [
        (2, "'ticket.subject' is null"),
        (3, "'ticket.subject' is null"),
        (4, "no field 'ticket.subject'"),
        (5, "no field 'ticket.subject'"),
        (6, "'ticket.subject' is an object, not a text"),
        (7, "no field 'ticket.subject'"),
    ]


# the columns and what is in their objects, a name, and the steps to what it means
OWN_NAMES = [
    ({"a.b": 0, "a": {"b": 0}}, "a.b", ("a.b",)),
    ({"a": {"b.c": 0, "b": {"c": 0}}}, "a.b.c", ("a", "b.c")),
    ({"a": {"b.c": 0}, "a.b": {"c": 0}}, "a.b.c", ("a.b", "c")),
    ({"a": {"b": {"c": 0}}, "a.b": {"d": 0}}, "a.b.c", ("a", "b", "c")),
    ({"a": {"b": {"c": 0}}, "a.b": 0}, "a.b.c", ("a", "b", "c")),
    ({"a.": {"b": 0}, "a": {"": {"b": 0}}}, "a..b", ("a.", "b")),
    ({"a": {"": {"b": 0}}}, "a..b", ("a", "", "b")),
    ({"a": {"a": {"a": 0}}}, "a.a.a", ("a", "a", "a")),
    ({"a": {"b": 0}}, "a", ("a",)),
    ({"a": {"b": 0}}, "b", None),
    ({"a": {"b": 0}}, "a.", None),
    ({"a": {"b": 0}}, ".b", None),
    ({"a": {"b": 0}}, "a.b.", None),
    ({"a": {"b": 0}}, "a.b.c", None),
    ({"a": {"b": 0}}, "", None),
]


@as_subtests("columns, name, steps", OWN_NAMES)
def test_a_name_that_has_dots_of_its_own_comes_first(columns, name, steps):
    inside = {outer: list(fields) for outer, fields in objects_in(columns, [f"{name}."])}
    names = Names(list(columns), lambda outer: inside.get(outer, []))
    assert names.steps(name) == steps
    assert (name in names) == (steps is not None)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "table"])
def test_a_column_of_that_very_name_is_read(tmp_path, form):
    row = {"ticket.subject": "own", "ticket": {"subject": "inner", "body": "b"}, "label": 1}
    schema = pa.schema([("ticket.subject", pa.string()), ("ticket", TICKET), ("label", pa.int64())])
    given = source_of(form, [row], schema, tmp_path, "a")
    assert read(given, "ticket.subject", "label", None, ["ticket.subject"])[1:] == [["own"], ["1"], [1], [], [["own"]]]
    assert read(given, "ticket.subject+ticket.body", "label", None, ["ticket"])[1] == ["own\nb"]
    assert read(given, "ticket.body", "label", None, ["ticket.subject"])[5] == [["own"]]


MESSAGES = [
    ("ticket.subjct", "label", "no column 'ticket.subjct'; in 'ticket' there are: subject, body"),
    ("ticket.subject+ticket.bdy", "label", "no column 'ticket.bdy'; in 'ticket' there are: subject, body"),
    ("ticket.subject,tickt.body", "label", "no column 'tickt.body'; there are: id, label, ticket, meta"),
    ("ticket.subject.x", "label", "no column 'ticket.subject.x'; in 'ticket' there are: subject, body"),
    ("id.x", "label", "no column 'id.x'; there are: id, label, ticket, meta"),
    ("id", "meta.a.b.star", "no column 'meta.a.b.star'; in 'meta.a.b' there are: note, stars, more.than"),
    ("id", "meta.a.c.stars", "no column 'meta.a.c.stars'; in 'meta.a' there are: b"),
    ("ticket.subject+ticket.subject", "label", "column 'ticket.subject' is there twice"),
    ("ticket.subject", "ticket.subject", "column 'ticket.subject' is the label too"),
]


@as_subtests("form, case", itertools.product(["jsonl", "parquet"], MESSAGES))
def test_messages_say_which_fields_there_are(tmp_path, form, case):
    text, label, message = case
    row = {"id": "1", "label": 1, "ticket": TICKETS[0], "meta": DEEP}
    given = source_of(form, [row], NESTED, tmp_path, "a")
    with pytest.raises(SourceError) as error:
        open_source(given, text=text, label=label)
    assert str(error.value).endswith(message)
    source = open_source(given, text="ticket.subject", label="label")
    with pytest.raises(SourceError, match=r"no column 'meta\.a\.x'; in 'meta\.a' there are: b$"):
        source.carry(["meta.a.x"])


def test_a_message_is_short_and_can_be_shown(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": {str(number): 1 for number in range(LISTED + 5)}, "b": {"\ud800": 1}, "label": 1}))
    with pytest.raises(SourceError, match=r"in 'a' there are: 0, 1, .*, 19 and 5 more$"):
        open_source(str(path), text="a.x")
    with pytest.raises(SourceError, match=r"in 'b' there are: \\ud800$"):
        open_source(str(path), text="b.x")


def test_what_stands_twice(tmp_path):
    """As of columns: a field that is read must not be there twice, one elsewhere may have its name."""
    lines = [
        '{"ticket": {"subject": "a", "subject": "b"}, "label": 1}',
        '{"ticket": {"subject": "a"}, "ticket": {"subject": "b"}, "label": 1}',
        '{"ticket": {"subject": "a", "body": "x", "body": "y"}, "subject": "b", "label": 1}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (rows,) = open_source(str(tmp_path / "a.jsonl"), text="ticket.subject").rows()
    assert rows.texts == ["a"]
    assert [row.reason for row in rows.bad] == [
        "two fields are called 'ticket.subject'",
        "two fields are called 'ticket'",
    ]
    parts = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    table = pa.table({"ticket": pa.StructArray.from_arrays(parts, ["subject", "subject", "body"]), "label": [1]})
    assert read(table, "ticket.body", "label", None, ["ticket.body"])[1] == ["c"]
    with pytest.raises(SourceError, match=r"two columns are called 'ticket\.subject'"):
        open_source(table, text="ticket.subject")
    twice = pa.Table.from_arrays([*([table["label"]] * 2), table["ticket"]], ["x", "x", "ticket"])
    source = open_source(twice, text="ticket.body", need_label=False)
    source.carry(["ticket.body", "x_2"])
    assert [rows.carried.to_pylist() for rows in source.rows()] == [[{"ticket.body": "c", "x_2": 1}]]


@pytest.mark.parametrize("label", ["label", "meta.tags"])
def test_a_field_that_comes_late_is_found(tmp_path, label):
    early = [{"label": 1, "ticket": None, "meta": {"tags": None}}] * SAMPLE_LINES
    late = {"label": 1, "ticket": {"subject": "a"}, "meta": {"tags": ["x"]}}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*early, late]))
    source = open_source(str(tmp_path / "a.jsonl"), text="ticket.subject", label=label)
    assert [text for rows in source.rows() for text in rows.texts] == ["a"]
    assert source.multi_label == (label == "meta.tags")


def test_a_parquet_file_is_read_no_further_than_it_must_be(tmp_path):
    source = open_source(source_of("parquet", *(records()[0], NESTED), tmp_path, "a"), text="ticket.body")
    source.carry(["meta.a.b.stars"])
    (kind,) = {batch.schema for batch in source.batches()}
    assert [kind.field(name).type for name in ("ticket", "meta")] == [
        pa.struct({"body": pa.string()}),
        pa.struct({"a": pa.struct({"b": pa.struct({"stars": pa.int64()})})}),
    ]


def test_nothing_is_carried_that_was_not_asked_for(tmp_path):
    nested = [{"id": "1", "label": 1, "ticket": TICKETS[0], "meta": DEEP}]
    for form in FORMS:
        source = open_source(source_of(form, nested, NESTED, tmp_path, "a"), text="ticket.subject")
        source.carry()
        (rows,) = source.rows()
        carried = rows.carried if form == "jsonl" else rows.carried.to_pylist()
        assert (source.columns, carried) == (list(nested[0]), nested)


def test_classes_of_a_data_set_have_their_names():
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["poor", "fine"])
    data = datasets.Dataset.from_list(
        [{"text": "a", "meta": {"stars": 1, "tags": [0, 1]}}, {"text": "b", "meta": {"stars": 0, "tags": []}}],
        features=datasets.Features(
            {"text": datasets.Value("string"), "meta": {"stars": names, "tags": datasets.Sequence(names)}}
        ),
    )
    for label, expected in (("meta.stars", ["fine", "poor"]), ("meta.tags", [("poor", "fine"), ()])):
        assert [rows.labels for rows in open_source(data, label=label).rows()] == [expected]


def reviews(count: int, seed: int) -> list[dict]:
    return [
        {"ticket": {"subject": text}, "meta": {"stars": stars, "film": number % 7}}
        for number, (text, stars) in enumerate(generate_reviews(count, seed))
    ]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_store_remembers_the_names(tmp_path, form):
    schema = pa.schema(
        [
            ("ticket", pa.struct({"subject": pa.string()})),
            ("meta", pa.struct({"stars": pa.int64(), "film": pa.int64()})),
        ]
    )
    rows = reviews(60, 0)
    given = source_of(form, rows, schema, tmp_path, "train")
    options = {"tokenizer": "train:bpe:300", "progress": False, "cluster": "meta.film"}
    store = prepare(given, tmp_path / "train", text="ticket.subject", label="meta.stars", **options)
    assert [(one.text, one.label) for one in store.manifest.sources] == [("ticket.subject", "meta.stars")]
    assert read_clusters(store, "meta.film").count == 7
    plain = [(row["ticket"]["subject"], row["meta"]["stars"]) for row in rows]
    flat = prepare(plain, tmp_path / "flat", tokenizer="train:bpe:300", progress=False)
    assert store.fingerprint == flat.fingerprint

    test = source_of(form, reviews(30, 1), schema, tmp_path, "test")
    like = ["prepare", test, "--out", str(tmp_path / "test"), "--like", str(store.path), "--cluster", "meta.film"]
    found = CliRunner().invoke(cli.app, like)
    assert found.exit_code == 0, found.output
    assert "'meta.film'" in found.output
    looked = CliRunner().invoke(
        cli.app, ["inspect", given, "--against", test, "--text", "ticket.subject", "--label", "meta.stars"]
    )
    assert looked.exit_code == 0, looked.output


def test_a_null_group_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1, "meta": {"film": 1}}\n{"text": "b", "label": 2}\n')
    options = {"tokenizer": "train:bpe:300", "progress": False}
    with pytest.raises(SourceError, match=r"line 2: column 'meta\.film' is null"):
        prepare(str(tmp_path / "a.jsonl"), tmp_path / "s", cluster="meta.film", **options)


def test_csv_has_no_objects(tmp_path):
    (tmp_path / "a.csv").write_text('a.b,a,label\nown,"{""c"": 1}",1\n')
    (rows,) = open_source(str(tmp_path / "a.csv"), text="a.b").rows()
    assert (rows.texts, rows.bad) == (["own"], list[BadRow]())
    with pytest.raises(SourceError, match=r"no column 'a\.c'; there are: a\.b, a, label"):
        open_source(str(tmp_path / "a.csv"), text="a.c")


@pytest.mark.parametrize("carried", [["ticket.body"], ["ticket.body", "id"], ["id"], None])
def test_a_record_is_lifted_once(tmp_path, monkeypatch, carried):
    """Where all is carried, as it stands there."""
    rows = [{"id": number, "label": number, "ticket": {"subject": "s", "body": f"b{number}"}} for number in range(5)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    source = open_source(str(path), text="ticket.subject", label="label")
    source.carry(carried)
    lifted, lift = [], source._lifted
    monkeypatch.setattr(source, "_lifted", lambda record: lifted.append(record) or lift(record))
    (batch,) = source.rows()
    assert len(lifted) == len(rows)
    whole = [row if carried is None else {} for row in rows]
    for name in carried or ():
        whole = [row | {name: own["id"] if name == "id" else own["ticket"]["body"]}
                 for row, own in zip(whole, rows, strict=True)]  # fmt: skip
    assert batch.carried == [*whole, None]
