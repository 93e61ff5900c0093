from __future__ import annotations

import base64
import datetime as dt
import gzip
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import transforms.coder  # noqa: F401  registers the coder of record batches
from local.gcs import local_gcs
from transforms.files import (
    ReadJsonLines,
    ReadParquetBatches,
    parquet_schema,
    read_lines,
    read_row_groups,
    split_lines,
    split_row_groups,
)
from transforms.parquet_sink import WriteParquetBatches
from transforms.shares import FileColumnsError, Range, RowGroups, group_shares

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("name", pa.string())])


def batch(start: int, stop: int) -> pa.RecordBatch:
    rows = [{"n": i, "name": None if i % 3 == 0 else f"name {i}"} for i in range(start, stop)]
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner="FnApiRunner")


def metadata(path: Path) -> FileMetadata:
    return FileMetadata(str(path), path.stat().st_size)


def all_lines(path: Path, split_bytes: int, **kwargs) -> list[bytes]:
    shares = split_lines(metadata(path), split_bytes)
    return [line for share in shares for lines in read_lines(share, **kwargs) for line in lines]


def test_a_year_that_nanoseconds_do_not_hold_is_not_wrapped_around(tmp_path):
    """Spark, Hive and Impala write int96, which holds any year."""
    years = [dt.datetime(2026, 3, 1), dt.datetime(2611, 3, 1)]
    path = tmp_path / "spark.parquet"
    pq.write_table(
        pa.table({"event_time": pa.array(years, pa.timestamp("us"))}),
        path,
        use_deprecated_int96_timestamps=True,
    )
    (read,) = read_row_groups(RowGroups(str(path), (0,), 2))
    assert read.column("event_time").to_pylist() == years


class TestLines:
    @given(
        content=st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\xff\x00", b"longer line"]), max_size=60).map(
            b"".join
        ),
        split_bytes=st.integers(1, 40),
        block_bytes=st.integers(1, 40),
        rows=st.integers(1, 5),
    )
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_every_line_is_read_once_and_in_order_however_the_file_is_split(
        self, tmp_path, content, split_bytes, block_bytes, rows
    ):
        path = tmp_path / "lines.jsonl"
        path.write_bytes(content)
        lines = all_lines(path, split_bytes, rows=rows, block_bytes=block_bytes)
        # Empty lines count; what follows the last line end is a line only where there is something.
        expected = content.split(b"\n")
        assert lines == (expected if expected[-1] else expected[:-1])

    def test_lists_have_the_wanted_length(self, tmp_path):
        path = tmp_path / "lines.jsonl"
        path.write_bytes(b"1\n2\n3\n4\n5\n")
        assert list(read_lines(Range(str(path), 0, 10), rows=2)) == [[b"1", b"2"], [b"3", b"4"], [b"5"]]

    def test_a_share_without_the_beginning_of_a_line_is_empty(self, tmp_path):
        path = tmp_path / "lines.jsonl"
        path.write_bytes(b"one long line\nnext\n")
        assert list(read_lines(Range(str(path), 3, 9))) == []
        assert list(read_lines(Range(str(path), 9, 15))) == [[b"next"]]

    def test_a_line_without_end_is_cut_and_the_rest_of_it_skipped(self, tmp_path):
        path = tmp_path / "lines.jsonl"
        path.write_bytes(b"x" * 1000 + b"\nok\n" + b"y" * 1000)
        for split_bytes in (64, 10_000):
            lines = all_lines(path, split_bytes, max_line_bytes=100, block_bytes=32)
            assert lines == [b"x" * 100, b"ok", b"y" * 100]

    def test_a_compressed_file_is_one_share(self, tmp_path):
        path = tmp_path / "lines.jsonl.gz"
        path.write_bytes(gzip.compress(b"one\n\xfftwo\n" * 3))
        assert split_lines(metadata(path), 4) == [Range(str(path), 0, None)]
        assert all_lines(path, 4) == [b"one", b"\xfftwo"] * 3

    @pytest.mark.parametrize("split_bytes", [1, 2, 5, 1_000])
    @pytest.mark.parametrize("block_bytes", [1, 2, 1_000])
    def test_the_mark_of_utf8_at_the_beginning_of_a_file_is_no_part_of_a_line(
        self, tmp_path, split_bytes, block_bytes
    ):
        mark = b"\xef\xbb\xbf"
        for content, expected in [
            (mark + b'{"a": 1}\nnext\n', [b'{"a": 1}', b"next"]),
            (mark + b"\n" + mark + b"x", [b"", mark + b"x"]),
            (mark, []),
            (mark[:2], [mark[:2]]),
            (mark + mark + b"x\n", [mark + b"x"]),
        ]:
            path = tmp_path / "lines.jsonl"
            path.write_bytes(content)
            assert all_lines(path, split_bytes, block_bytes=block_bytes) == expected
            zipped = tmp_path / "lines.jsonl.gz"
            zipped.write_bytes(gzip.compress(content))
            assert all_lines(zipped, split_bytes, block_bytes=block_bytes) == expected

    def test_an_empty_file_has_no_lines(self, tmp_path):
        path = tmp_path / "lines.jsonl"
        path.write_bytes(b"")
        assert all_lines(path, 10) == []

    def test_the_transform_reads_all_files_of_a_pattern(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe\n')
        (tmp_path / "b.jsonl").write_bytes(b'\n{"b": 2}')
        with pipeline() as p:
            lines = p | ReadJsonLines(f"{tmp_path}/*.jsonl", split_bytes=5) | beam.FlatMap(lambda rows: rows)
            assert_that(lines, equal_to([b'{"a": 1}', b"\xff\xfe", b'{"b": 2}']))

    def test_a_pattern_without_a_file_is_an_error_that_names_it(self, tmp_path):
        p = pipeline()
        _ = p | ReadJsonLines(f"{tmp_path}/nothing*.jsonl")
        with pytest.raises(Exception, match=r"nothing\*\.jsonl"):
            p.run().wait_until_finish()


class Keys(encryption.KmsClient):
    """Wraps no key: that of a test is no secret."""

    def wrap_key(self, key_bytes, master_key_identifier):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, master_key_identifier):
        return base64.b64decode(wrapped_key)


class TestReadParquet:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        path = tmp_path / "rows.parquet"
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for start in range(0, 10, 4):
                writer.write_batch(batch(start, min(start + 4, 10)))
        return path

    def test_shares_are_whole_row_groups(self, path):
        assert split_row_groups(metadata(path), split_bytes=1) == [
            RowGroups(str(path), (0,), 10),
            RowGroups(str(path), (1,), 10),
            RowGroups(str(path), (2,), 10),
        ]
        assert split_row_groups(metadata(path)) == [RowGroups(str(path), (0, 1, 2), 10)]

    def test_batches_have_the_wanted_length_across_row_groups(self, path):
        batches = list(read_row_groups(RowGroups(str(path), (0, 2), 10), batch_rows=5))
        assert [batch.to_pydict()["n"] for batch in batches] == [[0, 1, 2, 3, 8], [9]]

    def test_the_transform_reads_the_chosen_columns(self, path, tmp_path):
        pq.write_table(pa.Table.from_batches([batch(20, 22)]), tmp_path / "more.parquet")
        with pipeline() as p:
            batches = p | ReadParquetBatches(f"{tmp_path}/*.parquet", columns=["n"], split_bytes=1)
            rows = batches | beam.FlatMap(lambda batch: batch.to_pylist())
            assert_that(rows, equal_to([{"n": i} for i in [*range(10), 20, 21]]))

    def test_of_optional_columns_every_file_gives_those_that_it_has(self, path, tmp_path):
        wide = batch(20, 22).append_column("big", pa.array([b"x" * 100_000] * 2))
        pq.write_table(pa.Table.from_batches([wide]), tmp_path / "wide.parquet")
        pq.write_table(pa.table({"name": ["none"], "other": [1]}), tmp_path / "less.parquet")
        read = ReadParquetBatches(f"{tmp_path}/*.parquet", columns=["absent", "n", "big"], optional=True)
        with pipeline() as p:
            names = p | read | beam.Map(lambda batch: tuple(sorted(batch.schema.names)))
            assert_that(names, equal_to([("n",), ("big", "n"), ("name", "other")]))

    def test_a_missing_column_is_named_with_its_file(self, path):
        with pytest.raises(FileColumnsError, match=r"rows\.parquet: no column Amount; it has n, name"):
            split_row_groups(metadata(path), ["n", "Amount"])

    def test_another_kind_of_file_is_named(self, tmp_path):
        path = tmp_path / "text.parquet"
        path.write_text("no parquet in here")
        with pytest.raises(FileColumnsError, match=r"text\.parquet: not a Parquet file"):
            split_row_groups(metadata(path))
        with pytest.raises(FileColumnsError, match=r"text\.parquet: not a Parquet file"):
            parquet_schema(str(path))

    def test_a_file_that_is_replaced_during_the_job_is_named(self, path):
        share, _, _ = split_row_groups(metadata(path), split_bytes=1)
        pq.write_table(pa.Table.from_batches([batch(0, 30)]), path)
        with pytest.raises(FileColumnsError, match=r"rows\.parquet: expected the 10 rows .*, got 30: it was"):
            list(read_row_groups(share))

    @pytest.mark.parametrize("damage", [lambda content: b"\xff" * 40 + content[40:], lambda content: b""])
    def test_a_file_that_is_damaged_is_named(self, path, damage):
        (share,) = split_row_groups(metadata(path))
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(FileColumnsError, match=r"rows\.parquet: cannot be read as Parquet: "):
            list(read_row_groups(share))

    @pytest.mark.parametrize("plaintext_footer", [True, False])
    def test_an_encrypted_file_is_named(self, tmp_path, plaintext_footer):
        """Arrow ends the process where it looks at an encrypted column below a footer that is not."""
        path = tmp_path / "secret.parquet"
        factory = encryption.CryptoFactory(lambda config: Keys())
        how = encryption.EncryptionConfiguration(
            "key", column_keys={"key": ["n"]}, plaintext_footer=plaintext_footer
        )
        properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), how)
        with pq.ParquetWriter(path, SCHEMA, encryption_properties=properties) as writer:
            writer.write_batch(batch(0, 4))
        for look in (lambda: split_row_groups(metadata(path)), lambda: parquet_schema(str(path))):
            with pytest.raises(FileColumnsError, match=r"secret\.parquet: .*encrypt"):
                look()

    def test_the_schema_of_a_file(self, path):
        assert parquet_schema(str(path)) == SCHEMA

    def test_a_file_without_rows_gives_no_share(self, tmp_path):
        pq.write_table(SCHEMA.empty_table(), tmp_path / "empty.parquet")
        assert split_row_groups(metadata(tmp_path / "empty.parquet")) in (
            [],
            [RowGroups(str(tmp_path / "empty.parquet"), (0,), 0)],
        )


def test_cloud_storage_paths_go_through_beams_file_systems(tmp_path):
    """On a directory that stands for gs://, as in the local stack."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "in.jsonl").write_bytes(b"one\ntwo\n")
    with local_gcs(tmp_path):
        with pipeline() as p:
            lines = p | ReadJsonLines("gs://bucket/*.jsonl", split_bytes=4) | beam.FlatMap(lambda rows: rows)
            assert_that(lines, equal_to([b"one", b"two"]))
        with pipeline() as p:
            rows = {"rows": p | beam.Create([batch(0, 3)])}
            paths = rows | WriteParquetBatches("gs://bucket/out", {"rows": SCHEMA})
            assert_that(paths, equal_to(["gs://bucket/out/rows-00000-of-00001.parquet"]))
        with pipeline() as p:
            rows = (
                p
                | ReadParquetBatches("gs://bucket/out/*.parquet")
                | beam.FlatMap(lambda b: b["n"].to_pylist())
            )
            assert_that(rows, equal_to([0, 1, 2]))


class TestShares:
    @given(number=st.integers(0, 40), most=st.integers(1, 12))
    def test_there_are_no_more_lists_than_allowed_and_every_share_is_in_one(self, number, most):
        shares = [Range(f"{i % 3}", i, i + 1) for i in range(number)]
        lists = group_shares(shares, most)
        assert len(lists) <= most
        assert sorted(share for part in lists for share in part) == sorted(shares)
        assert {len(part) for part in lists[:-1]} <= {len(part) for part in lists[:1]}

    def test_a_source_of_more_shares_is_read_in_fewer_elements(self, tmp_path, monkeypatch):
        for i in range(30):
            (tmp_path / f"{i}.jsonl").write_bytes(b"%d\n" % i)
        monkeypatch.setattr(group_shares, "__defaults__", (4,))
        monkeypatch.setattr("transforms.files.read_shares", lambda shares, *_: [[b"line"] * len(shares)])
        with pipeline() as p:
            lists = p | ReadJsonLines(f"{tmp_path}/*.jsonl")
            assert_that(lists | beam.Map(len), equal_to([6, 8, 8, 8]))


@pytest.mark.parametrize("size", [1, 99, 100, 101, 350, 1001])
def test_the_shares_of_a_file_of_lines_are_equal(size):
    shares = split_lines(FileMetadata("a.jsonl", size), split_bytes=100)
    lengths = [share.stop - share.start for share in shares]
    assert [share.start for share in shares] == [0, *(share.stop for share in shares[:-1])]
    assert sum(lengths) == size
    assert max(lengths) <= 100
    assert max(lengths) - min(lengths) <= len(lengths)
