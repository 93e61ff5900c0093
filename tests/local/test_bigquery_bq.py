"""Google's `bq` against the BigQuery emulator, by the lines of docs/local-stack.md."""

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bq") is None, reason="bq of the Google Cloud CLI is not installed"),
]

PAGE = Path(__file__).parents[2] / "docs" / "local-stack.md"
CSV = "id,amount,moment\na,1.5,2026-01-02 03:04:05\nb,2,2026-01-03 00:00\n"


@pytest.fixture
def bq(bigquery_emulator, dataset, tmp_path):
    """Runs `bq` in a shell as the page has it, without an account, in a folder of its own."""
    block = r"^    discovery=.*\n    local_bq\(\) \{\n(?:    .*\n)*?    \}\n"
    lines = re.search(block, PAGE.read_text(), re.MULTILINE)
    assert lines, "docs/local-stack.md: expected the shell function local_bq"
    environment = os.environ | bigquery_emulator.environment()
    environment |= {"HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "DATASET": dataset}

    def run(*commands):
        """The output of each command, with its exit status before it."""
        script = "\n".join(f"out=$(local_bq {line} 2>&1); printf '%s\\0' \"$? $out\"" for line in commands)
        done = subprocess.run(
            ["bash", "-c", lines[0] + script],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        # bq breaks lines by the width of the terminal.
        return [re.sub(r"\s+", " ", text) for text in done.stdout.split("\0")[:-1]]

    return run


def test_the_commands_of_the_page(bq, bigquery_client, tmp_path):
    (tmp_path / "transactions.csv").write_text(CSV)
    try:
        said = bq(*re.findall(r"^    local_bq (\w.*)$", PAGE.read_text(), re.MULTILINE))
        assert [text[0] for text in said] == ["0"] * len(said), said
        made, loaded, listed, shown, head, counted = said
        assert "successfully created" in made
        assert "Upload complete" in loaded
        assert "transactions TABLE" in listed
        assert "|- amount: float" in shown
        assert "|- moment: timestamp" in shown
        assert "| a | 1.5 | 2026-01-02 03:04:05 |" in head
        assert "| 2 |" in counted
    finally:
        bigquery_client.delete_dataset("history", delete_contents=True, not_found_ok=True)


def test_partitioning_clustering_and_timestamps_are_shown(bq):
    made, _, listed, head, queried = bq(
        "mk --table --schema=id:STRING,moment:TIMESTAMP --time_partitioning_field=moment "
        "--clustering_fields=id --label=team:risk $DATASET.made",
        "query --use_legacy_sql=false \"INSERT $DATASET.made VALUES ('a', TIMESTAMP '2026-01-02 03:04:05')\"",
        "ls $DATASET",
        "head $DATASET.made",
        'query --use_legacy_sql=false "SELECT * FROM $DATASET.made"',
    )
    assert "successfully created" in made
    assert "made TABLE team:risk DAY (field: moment) id" in listed
    for text in (head, queried):
        assert "| a | 2026-01-02 03:04:05 |" in text


@pytest.mark.parametrize(
    ("flags", "content"),
    [
        ("--source_format=NEWLINE_DELIMITED_JSON", b'{"id": "a", "n": 1}\n'),
        ("--source_format=PARQUET", pa.table({"id": ["a"], "n": [1]})),
        # One request instead of an upload that can be resumed.
        ("-F tab --skip_leading_rows=1 --noenable_resumable_uploads", gzip.compress(b"i\tn\na\t1\n")),
    ],
    ids=["json", "parquet", "csv"],
)  # fmt: skip
def test_files_are_loaded_with_the_schema_of_the_command(bq, tmp_path, flags, content):
    if isinstance(content, bytes):
        (tmp_path / "file").write_bytes(content)
    else:
        pq.write_table(content, tmp_path / "file")
    loaded, head = bq(f"load {flags} $DATASET.t file id:STRING,n:INTEGER", "--format=json head $DATASET.t")
    assert loaded[0] == "0", loaded
    assert json.loads(head.removeprefix("0 ")) == [{"id": "a", "n": "1"}]


def test_failures_are_told_in_the_words_of_bigquery(bq, bigquery_client, tmp_path):
    (tmp_path / "history.csv").write_text(CSV)
    schema = "id:INTEGER,amount:FLOAT,moment:TIMESTAMP"
    no_dataset, no_schema, no_list, bad_rows, jobs = bq(
        "load --autodetect no.t history.csv",
        "load $DATASET.t history.csv",
        "ls no",
        f"load --skip_leading_rows=1 $DATASET.t history.csv {schema}",
        "ls --jobs --max_results=1",
    )
    for text in (no_dataset, no_list):
        assert text.startswith("2 ")
        assert f"Not found: Dataset {bigquery_client.project}:no" in text
    assert no_schema.endswith("No schema specified on job or table.")
    assert bad_rows.startswith("1 ")
    assert "CSV table encountered too many errors, giving up. Rows: 2; errors: 2." in bad_rows
    assert "Could not parse 'a' as INT64 for field id (position 0) in row 1" in bad_rows
    assert "FAILURE" in jobs
