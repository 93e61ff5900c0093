"""Tests of the Parquet files that the sinks write."""

from __future__ import annotations

import io
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.parquet import RowGroupWriter
from transforms.schema import SCORES, empty

IDS = pa.schema([pa.field("transaction_id", pa.string()), pa.field("note", pa.string())])


class _Kept(io.BytesIO):
    """A file whose content can be read after it was closed."""

    def close(self) -> None:
        self.seek(0)


def written(schema: pa.Schema, *batches: pa.RecordBatch, codec: str = "snappy") -> _Kept:
    """The file of some batches."""
    file = _Kept()
    writer = RowGroupWriter(file, schema, codec)
    for batch in batches:
        writer.write(batch)
    writer.close()
    return file


def columns(file: _Kept) -> dict[str, pq.ColumnChunkMetaData]:
    """The first row group's columns, by their paths."""
    group = pq.read_metadata(file).row_group(0)
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


@pytest.mark.parametrize(
    ("ids", "codec", "expected"),
    [
        (
            [uuid.UUID(int=i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128).hex for i in range(2000)],
            "snappy",
            "UNCOMPRESSED",
        ),
        ([f"terminal-17/2026-03-01/{i:09d}" for i in range(2000)], "snappy", "SNAPPY"),
        ([f"terminal-17/2026-03-01/{i:09d}" for i in range(2000)], "zstd", "ZSTD"),
        ([f"terminal-17/2026-03-01/{i:09d}" for i in range(2000)], "none", "UNCOMPRESSED"),
    ],
)
def test_ids_are_compressed_where_that_makes_them_smaller(ids: list[str], codec: str, expected: str) -> None:
    batch = pa.RecordBatch.from_pydict({"transaction_id": ids, "note": ["a note"] * len(ids)}, IDS)
    file = written(IDS, batch, codec=codec)
    found = columns(file)
    assert found["transaction_id"].compression == expected
    assert found["note"].compression == {"none": "UNCOMPRESSED"}.get(codec, codec.upper())
    assert pq.read_table(file).to_batches()[0].equals(batch)


RANDOM = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (RANDOM.normal(size=2000), "UNCOMPRESSED"),
        (RANDOM.normal(size=2000).astype(np.float32).astype(np.float64), "UNCOMPRESSED"),
        (RANDOM.integers(0, 3, 2000).astype(np.float64), "SNAPPY"),
        (np.zeros(2000), "SNAPPY"),
        (pa.nulls(2000, pa.float64()), "SNAPPY"),
    ],
    ids=["random", "random float32", "few values", "zeros", "nulls"],
)
def test_numbers_are_compressed_where_that_makes_them_much_smaller(
    numbers: np.ndarray | pa.Array, expected: str
) -> None:
    plain = pa.array(numbers)
    offsets = pa.array(np.arange(2001, dtype=np.int32))
    batch = pa.RecordBatch.from_pydict(
        {
            "plain": plain,
            "lists": pa.ListArray.from_arrays(offsets, plain),
            "nested": pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays([plain], ["number"])),
            "fixed": pa.FixedSizeListArray.from_arrays(plain, 1),
        }
    )
    file = written(batch.schema, batch.slice(0, 7), batch.slice(7))
    assert {name: column.compression for name, column in columns(file).items()} == {
        "plain": expected,
        "lists.list.element": expected,
        "nested.list.element.number": expected,
        "fixed.list.element": expected,
    }
    assert pq.read_table(file).combine_chunks().to_batches()[0].equals(batch)


def test_every_other_column_of_scores_is_compressed_and_texts_have_a_dictionary() -> None:
    row = {"transaction_id": "t", "top_features": [{"feature": "V1", "contribution": 1.0, "value": "2"}]}
    batch = pa.RecordBatch.from_pylist(
        [row | {"encoded": [1.0]}], pa.schema([f.with_nullable(True) for f in SCORES])
    )
    found = columns(written(batch.schema, batch))
    assert {name for name, column in found.items() if column.compression != "SNAPPY"} == {
        *("transaction_id", "encoded.list.element", "top_features.list.element.contribution")
    }
    texts = ("account_id", "top_features.list.element.feature", "top_features.list.element.value")
    assert all("RLE_DICTIONARY" in found[name].encodings for name in texts)
    assert not any(
        "RLE_DICTIONARY" in found[n].encodings
        for n in ("transaction_id", "anomaly_score", "encoded.list.element")
    )


def test_a_file_without_rows_has_the_columns() -> None:
    assert pq.read_table(written(SCORES)).schema.equals(empty(SCORES).schema)
