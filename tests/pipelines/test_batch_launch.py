"""What the batch pipeline understands and refuses at launch, on real files and tables."""

from __future__ import annotations

import pytest

from pipelines import batch


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.jsonl", "jsonl"),
        ("gs://b/2026-*.json", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson.bz2", "jsonl"),
        ("a.JSON.GZ", "jsonl"),
        ("a-*.jsonl.zst", "jsonl"),
        ("a.jsonl.xz", "jsonl"),
        ("a.gz", None),
        ("a.csv.gz", None),
        ("a.csv", None),
    ],
)
def test_the_ending_tells_the_format_behind_that_of_the_compression(path, found):
    args, _ = batch.parser().parse([f"--input={path}", "--model=m", "--output=o"])
    assert batch.input_format(args) == found
