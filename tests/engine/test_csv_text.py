import csv
import io

import pyarrow as pa
import pyarrow.csv
import pytest

from penstock.engine.csv_text import csv_text

FIELDS = ["", "a", " a ", "a\rb", "a\nb", "a\r\nb", "\r", 'a "b" c', "a,b\tc;d", "'", "é\u2028x", "#"]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_readers_find_what_was_written(delimiter):
    rows = [[one, other] for one in FIELDS for other in FIELDS]
    text = csv_text(rows, delimiter)
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)) == rows
    read = pyarrow.csv.ReadOptions(column_names=["a", "b"])
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = pyarrow.csv.ConvertOptions(column_types={"a": pa.string(), "b": pa.string()}, strings_can_be_null=False)
    table = pyarrow.csv.read_csv(io.BytesIO(text.encode()), read, parse, convert)
    assert [list(row.values()) for row in table.to_pylist()] == rows


def test_numbers_and_nothing():
    assert csv_text([[1, 0.5, None, True], ["x"]]) == "1,0.5,,True\nx\n"
    assert csv_text([]) == ""
