"""Rows are gathered up to a number of bytes, however many rows that are: every step that gathers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.io.filesystem import FileMetadata
from hypothesis import given, settings
from hypothesis import strategies as st

from common.compressed import decompressed
from common.limits import MAX_BATCH_BYTES
from common.parquet import RowGroupWriter
from transforms.coder import RecordBatchCoder
from transforms.dead_letter import dead_letters
from transforms.files import Range, read_lines, read_row_groups, split_row_groups
from transforms.rebatch import BATCH_ROWS, join, rebatch
from transforms.shares import RowGroups

TEXTS = pa.schema([("text", pa.string())])


def texts(*lengths: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array([chr(97 + length % 26) * length for length in lengths])], TEXTS)


class TestLines:
    def read(self, path: Path, **kwargs: int) -> list[list[bytes]]:
        return list(read_lines(Range(str(path), 0, None), **kwargs))

    def test_long_lines_make_short_lists(self, tmp_path):
        lines = [b"%d" % (i % 10) * 1_000_000 for i in range(20)]
        path = tmp_path / "long.jsonl"
        path.write_bytes(b"\n".join(lines))
        lists = self.read(path)
        assert [line for part in lists for line in part] == lines
        assert [len(part) for part in lists] == [8, 8, 4]

    @given(
        lengths=st.lists(st.integers(0, 40), max_size=40),
        rows=st.integers(1, 10),
        max_bytes=st.integers(1, 60),
    )
    @settings(deadline=None)
    def test_no_list_is_larger_than_the_bytes_or_a_block(self, tmp_path_factory, lengths, rows, max_bytes):
        lines = [b"x" * length for length in lengths]
        path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        lists = self.read(path, rows=rows, max_bytes=max_bytes, block_bytes=20)
        assert [line for part in lists for line in part] == lines
        assert all(len(part) <= rows for part in lists)
        assert all(sum(map(len, part)) <= max(max_bytes, 20 + 40) for part in lists)

    def test_blocks_of_a_monotonous_file_are_no_larger_than_others(self, tmp_path):
        path = tmp_path / "zeros.jsonl.zst"
        path.write_bytes(zstandard.compress(b"0" * 10_000_000))
        with path.open("rb") as file:
            sizes = [len(block) for block in decompressed(file, str(path), 1_000_000)]
        assert (max(sizes), sum(sizes)) == (1_000_000, 10_000_000)


class TestColumns:
    def test_long_rows_make_short_batches(self):
        parts = list(rebatch([texts(*[1_000_000] * 20)]))
        assert all(part.nbytes <= MAX_BATCH_BYTES for part in parts)
        assert sum(part.num_rows for part in parts) == 20

    @given(
        lengths=st.lists(st.lists(st.integers(0, 300), max_size=12), max_size=6),
        rows=st.integers(1, 15),
        max_bytes=st.integers(1, 500),
    )
    @settings(deadline=None)
    def test_no_batch_is_larger_unless_it_is_one_row(self, lengths, rows, max_bytes):
        batches = [texts(*part) for part in lengths]
        parts = list(rebatch(batches, rows, max_bytes))
        found = [row for part in parts for row in part.column("text").to_pylist()]
        assert found == [row for batch in batches for row in batch.column("text").to_pylist()]
        assert all(0 < part.num_rows <= rows for part in parts)
        # Joined rows share the bits and the first offset of theirs that each part had by itself.
        assert all(part.nbytes <= max_bytes or part.num_rows == 1 for part in parts)

    def test_a_dictionary_counts_by_the_rows_that_point_to_it(self):
        dictionary = pa.array([f"account {i}" for i in range(100_000)])
        many = pa.DictionaryArray.from_arrays(pa.array(range(100_000), pa.int32()), dictionary)
        batch = pa.record_batch({"account_id": many})
        assert [part.num_rows for part in rebatch([batch], 20_000, 1_000_000)] == [20_000] * 5
        one = pa.DictionaryArray.from_arrays(pa.array([0] * 16, pa.int32()), pa.array(["x" * 1_000_000]))
        parts = list(rebatch([pa.record_batch({"account_id": one})]))
        assert [part.num_rows for part in parts] == [8, 8]

    def test_parquet_is_decoded_by_bytes(self, tmp_path):
        path = tmp_path / "long.parquet"
        ids = [f"{i:010000}" for i in range(20_000)]
        pq.write_table(pa.table({"id": ids, "n": range(len(ids))}), path)
        assert path.stat().st_size < 20_000_000
        (share,) = split_row_groups(FileMetadata(str(path), path.stat().st_size))
        before = pa.total_allocated_bytes()
        held, found = [], []
        for batch in read_row_groups(share, ("id",)):
            held.append(pa.total_allocated_bytes() - before)
            found += batch.column("id").to_pylist()
        assert found == ids
        assert max(held) < 100_000_000  # of 200: what was decoded in one go, and a batch

    def test_parquet_is_decoded_a_batch_at_a_time(self, tmp_path):
        path = tmp_path / "columns.parquet"
        pq.write_table(pa.table({"n": [1.5] * 200_000}), path)
        before = pa.total_allocated_bytes()
        held = [
            pa.total_allocated_bytes() - before for _ in read_row_groups(RowGroups(str(path), (0,), 200_000))
        ]
        assert len(held) == -(-200_000 // BATCH_ROWS)
        assert max(held) < 2 * 8 * BATCH_ROWS  # a larger piece would leave the cache before it is parsed

    def test_row_groups_are_full_by_bytes_as_well(self, tmp_path, monkeypatch):
        monkeypatch.setattr("common.parquet.ROW_GROUP_BYTES", 10_000)
        path = tmp_path / "groups.parquet"
        writer = RowGroupWriter(path.open("wb"), TEXTS)
        for _ in range(10):
            writer.write(texts(2_000, 2_000))
        writer.close()
        metadata = pq.read_metadata(path)
        assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [6, 6, 6, 2]


def test_letters_that_are_alike_are_small_between_two_steps():
    letters = dead_letters([b"x" * 1_000_000] * 10, ["payload: too long"] * 10, "parse")
    encoded = RecordBatchCoder().encode(letters)
    assert len(encoded) < letters.nbytes / 100
    assert RecordBatchCoder().decode(encoded).equals(letters)


def test_texts_that_no_batch_can_hold_are_refused_and_not_cut_off():
    size = 2**30
    # Zeros that nobody reads take no memory.
    buffers = [pa.py_buffer(np.array([0, size], np.int32)), pa.py_buffer(np.zeros(size, np.uint8))]
    gigabyte = pa.record_batch([pa.StringArray.from_buffers(1, *buffers)], TEXTS)
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        join([gigabyte] * 3)
