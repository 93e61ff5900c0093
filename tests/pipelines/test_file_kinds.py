"""Files of other kinds are refused in one sentence; files of lines, however bad, are not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from common.file_kinds import problem
from pipelines.batch import main

LINES = b'{"transaction_id": "a", "features": [1]}\n{"transaction_id": "b", "features": [2]}\n'


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"n": [1]}), sink)
    return sink.getvalue()


OTHER_KINDS = {
    "parquet": (parquet_bytes(), "is Parquet; pass --input_format=parquet"),
    "gzip": (gzip.compress(LINES), r"is compressed by gzip; let its name end in \.gz"),
    "bzip2": (bz2.compress(LINES), "is compressed by bzip2"),
    "xz": (lzma.compress(LINES), "is compressed by xz"),
    "zstd": (zstandard.compress(LINES), "is compressed by zstd"),
    "utf-16": (LINES.decode().encode("utf-16"), "is UTF-16; convert it with iconv"),
    "utf-16 without a mark": (LINES.decode().encode("utf-16-le"), "is UTF-16 or binary"),
    "array": (b"[\n  " + LINES.replace(b"\n", b",\n"), "is one JSON array; .* jq -c"),
    "pretty": (b'{\n  "transaction_id": "a"\n}\n', "goes over several lines"),
    "csv": (b"Time,V1,V2,V3,Amount\n0,1,2,3,4\n", "is CSV; pass --input_format=csv"),
    "csv with tabs": (b"Time\tV1\tV2\tV3\tAmount\n0\t1\t2\t3\t4\n", "is CSV; pass"),
    "csv with semicolons": (b'"Time";"V1";"V2";"V3";"Amount"\r\n0;1,5;2;3;4\r\n', "is CSV; pass"),
}


@pytest.mark.parametrize(("content", "words"), OTHER_KINDS.values(), ids=OTHER_KINDS)
def test_a_file_of_another_kind_is_refused_at_launch(content, words, tmp_path, model_dir, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert main([f"--input={path}", f"--model={model_dir}", f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert problem(content) in error
    assert re.search(words, error)


def test_plain_text_under_the_name_of_a_compression_is_refused_at_launch(tmp_path, model_dir, capsys):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(LINES)
    assert main([f"--input={path}", f"--model={model_dir}", f"--output={tmp_path / 'out'}"]) == 2
    assert f"{path}: is no gzip file, or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "head", [b"", b"\n", LINES, b"\xef\xbb\xbf" + LINES, b"not json\n" + LINES, b"[1, 2]\n" + LINES]
)
def test_lines_are_left_to_the_job(head):
    assert problem(head) == ""


@given(st.binary(max_size=200))
def test_whatever_comes_there_is_an_answer(head):
    assert isinstance(problem(head), str)
    assert problem(b'{"a": 1}\n' + head) == ""
