"""Compressed files of lines: whole ones are read whole, and one that is cut off is an error that names it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import zlib
from pathlib import Path

import apache_beam as beam
import pytest
import zstandard
from apache_beam.io.filesystem import FileMetadata

from common.compressed import CompressedFileError, decompressed
from transforms.files import Range, ReadJsonLines, read_lines, split_lines

CODECS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zst": zstandard.compress,
    "deflate": zlib.compress,
}
LINES = [random.Random(i).randbytes(30).hex().encode() for i in range(2_000)]
CONTENT = b"\n".join(LINES)


def read(path: Path, **kwargs: int) -> list[bytes]:
    return [line for lines in read_lines(Range(str(path), 0, None), **kwargs) for line in lines]


@pytest.fixture(params=CODECS)
def suffix(request) -> str:
    return request.param


class TestWhole:
    @pytest.mark.parametrize("end", [b"", b"\n"], ids=["without a last line end", "with"])
    @pytest.mark.parametrize("block_bytes", [7, 5_000, 1024 * 1024])
    def test_every_line_is_read_once(self, tmp_path, suffix, end, block_bytes):
        path = tmp_path / f"lines.jsonl.{suffix}"
        path.write_bytes(CODECS[suffix](CONTENT + end))
        assert split_lines(FileMetadata(str(path), path.stat().st_size), 100) == [Range(str(path), 0, None)]
        assert read(path, block_bytes=block_bytes) == LINES

    @pytest.mark.parametrize("block_bytes", [7, 5_000, 1024 * 1024])
    def test_members_one_after_the_other_are_one_file(self, tmp_path, suffix, block_bytes):
        path = tmp_path / f"lines.jsonl.{suffix}"
        path.write_bytes(CODECS[suffix](CONTENT + b"\nlast of one, ") + CODECS[suffix](b"first of two\nend"))
        assert read(path, block_bytes=block_bytes) == [*LINES, b"last of one, first of two", b"end"]

    def test_padding_behind_the_last_member_is_no_damage(self, tmp_path):
        path = tmp_path / "lines.jsonl.gz"
        path.write_bytes(gzip.compress(b"one\n") + bytes(1_000))
        assert read(path, block_bytes=100) == [b"one"]

    def test_no_content_is_no_line(self, tmp_path, suffix):
        path = tmp_path / f"lines.jsonl.{suffix}"
        path.write_bytes(CODECS[suffix](b""))
        assert read(path) == []

    def test_what_expands_a_thousandfold_comes_in_blocks(self, tmp_path, suffix):
        path = tmp_path / f"lines.jsonl.{suffix}"
        path.write_bytes(CODECS[suffix](bytes(40_000_000)))
        with path.open("rb") as file:
            sizes = [len(block) for block in decompressed(file, str(path), 100_000)]
        assert sum(sizes) == 40_000_000
        # The decompressor of zstd takes no limit, only less at a time.
        assert max(sizes) <= (32 * 1024 * 1024 if suffix == "zst" else 100_000)


class TestCutOff:
    @pytest.mark.parametrize("kept", [0, 5, 0.5, -1])
    def test_it_is_an_error_that_names_the_file(self, tmp_path, suffix, kept):
        path = tmp_path / f"lines.jsonl.{suffix}"
        whole = CODECS[suffix](CONTENT)
        path.write_bytes(whole[: int(len(whole) * kept) if kept == 0.5 else kept])
        with pytest.raises(CompressedFileError, match=rf"lines\.jsonl\.{suffix}: .*cut off.*copy the file"):
            read(path)

    def test_a_later_member_that_is_cut_off_is_one_too(self, tmp_path, suffix):
        path = tmp_path / f"lines.jsonl.{suffix}"
        path.write_bytes(CODECS[suffix](b"one\n") + CODECS[suffix](CONTENT)[:-3])
        with pytest.raises(CompressedFileError, match=r"cut off"):
            read(path)

    @pytest.mark.parametrize("suffix", ["gz", "bz2"])
    def test_it_fails_the_pipeline(self, tmp_path, suffix):
        path = tmp_path / f"lines.jsonl.{suffix}"
        path.write_bytes(CODECS[suffix](CONTENT)[:-100])
        p = beam.Pipeline(runner="FnApiRunner")
        _ = p | ReadJsonLines(str(path))
        with pytest.raises(Exception, match=rf"lines\.jsonl\.{suffix}: .*cut off"):
            p.run().wait_until_finish()


@pytest.mark.parametrize("behind", [b"", CONTENT], ids=["from the beginning", "behind a member"])
def test_damage_is_an_error_that_names_the_file(tmp_path, suffix, behind):
    path = tmp_path / f"lines.jsonl.{suffix}"
    path.write_bytes((CODECS[suffix](behind) if behind else b"") + b"\xfeno compressed data at all")
    with pytest.raises(CompressedFileError, match=rf"lines\.jsonl\.{suffix}: is no \w+ file, or damaged"):
        read(path)
