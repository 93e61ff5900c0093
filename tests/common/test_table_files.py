"""Tables in files of JSON lines."""

import pyarrow as pa
import pytest

from common.table_files import TableFileError, read_table


def test_a_category_that_looks_like_a_time_stays_a_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"batch": "2026-03-01", "at": "2026-03-01T11:00:00Z"}\n{"batch": "2026-03-02", "n": 1}\n'
    )
    table = read_table(str(path), categories=["Batch"])
    assert table["batch"].to_pylist() == ["2026-03-01", "2026-03-02"]
    assert pa.types.is_timestamp(table.schema.field("at").type)
    assert table["n"].to_pylist() == [None, 1]
    assert read_table(str(path), rows=1).num_rows == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"a": 1},\n{"a": 2}]', "is one JSON array; write an object on each line"),
        (b"a text", "expected CSV, JSON lines or Parquet with the columns of a transaction"),
        (b"\x1f\x8b\x08", "is compressed by gzip"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path, content, words):
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(TableFileError, match=f"{path}.*{words}|{words}.*{path}"):
        read_table(str(path))
