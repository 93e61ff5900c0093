"""The directory that stands for Cloud Storage, under Beam's own file system."""

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.testing.util import assert_that, equal_to

from local.gcs import local_gcs


def test_everything_is_put_back(tmp_path):
    with local_gcs(tmp_path):
        assert type(FileSystems.get_filesystem("gs://x/y")).__name__ == "LocalGcs"
    assert type(FileSystems.get_filesystem("gs://x/y")).__name__ == "GCSFileSystem"


def test_gs_paths_are_files_below_the_root(tmp_path):
    with local_gcs(tmp_path):
        for name in ("a", "b", "dir/c"):
            with FileSystems.create(f"gs://bucket/{name}.txt") as file:
                file.write(name.encode())
        assert (tmp_path / "bucket" / "dir" / "c.txt").read_bytes() == b"dir/c"
        (match,) = FileSystems.match(["gs://bucket/*.txt"])
        assert [(item.path, item.size_in_bytes) for item in match.metadata_list] == [
            ("gs://bucket/a.txt", 1),
            ("gs://bucket/b.txt", 1),
        ]
        (match,) = FileSystems.match(["gs://bucket/**"])
        assert len(match.metadata_list) == 3
        FileSystems.rename(["gs://bucket/a.txt"], ["gs://other/deep/a.txt"])
        assert not FileSystems.exists("gs://bucket/a.txt")
        with FileSystems.open("gs://other/deep/a.txt") as file:
            assert file.read() == b"a"
        FileSystems.delete(["gs://other/deep/a.txt", "gs://other/not-there"])
        assert not FileSystems.exists("gs://other/deep/a.txt")
        with pytest.raises(BeamIOError, match="outside"):
            FileSystems.exists("gs://bucket/../../etc")


def test_parquet_goes_through_gs(tmp_path):
    rows = [{"x": 1}, {"x": 2}]
    with local_gcs(tmp_path):
        with beam.Pipeline(runner="FnApiRunner") as p:
            (
                p
                | beam.Create(rows)
                | beam.io.WriteToParquet("gs://bucket/out", pa.schema([("x", pa.int64())]), num_shards=1)
            )
        with beam.Pipeline(runner="FnApiRunner") as p:
            assert_that(p | beam.io.ReadFromParquet("gs://bucket/out*"), equal_to(rows))
