from __future__ import annotations

import gzip
import os

import pytest

from common import files
from common.compressed import CompressedFileError
from common.values import location
from local.gcs import local_gcs


@pytest.fixture
def tree(tmp_path):
    """A directory as Spark and Hive write it, below a hidden one."""
    root = tmp_path / ".hidden" / "rows"
    for name in (
        "day=1/part-0.parquet",
        "day=1/.part-0.parquet.crc",
        "day=2/part-0.parquet",
        "day=2/_temporary/0/part-1.parquet",
        "_SUCCESS",
        "_delta_log/0.json",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


DATA = ["day=1/part-0.parquet", "day=2/part-0.parquet"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", DATA),
        ("/", DATA),
        ("/*/", DATA),
        ("/day=*", DATA),
        ("/*/*.parquet", DATA),
        ("/day=2", DATA[1:]),
        ("/**/part-*", DATA),
        ("/_delta_log/*", ["_delta_log/0.json"]),
        ("/_SUCCESS", ["_SUCCESS"]),
        ("/nothing", []),
    ],
)
def test_a_directory_stands_for_its_data_files(tree, pattern, names):
    assert [file.path for file in files.find(f"{tree}{pattern}")] == [f"{tree}/{name}" for name in names]


def test_directories_of_cloud_storage(tree):
    with local_gcs(tree.parent):
        for pattern in ("gs://rows", "gs://rows/", "gs://rows/*/"):
            assert [file.path for file in files.find(pattern)] == [f"gs://rows/{name}" for name in DATA]


def test_keys_come_from_directories_not_from_names():
    path = "/rows/day=2026%2D03/account_id=a=b/time=1.csv"
    assert files.partition_keys(path) == {"day": "2026-03", "account_id": "a=b"}


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_content_is_decompressed_by_the_name_and_read_in_any_size(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    with files.open_content(str(tmp_path / "a.csv.gz")) as file:
        assert file.read(7) + file.read() == content
    (tmp_path / "a.csv.gz").write_bytes(content + b"not gzip")
    with pytest.raises(CompressedFileError, match=r"a\.csv\.gz"):
        files.head(str(tmp_path / "a.csv.gz"))


def test_a_file_of_this_machine_may_be_a_url():
    assert location("file:///a/b%20c.csv") == location("file:/a/b c.csv") == "/a/b c.csv"
    assert location("file://localhost/a") == "/a"
    with pytest.raises(Exception, match=r"expected a path, gs://... or file:///PATH, got 'file://host/a'"):
        location("file://host/a")
