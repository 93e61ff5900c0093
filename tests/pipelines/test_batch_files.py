"""Files as people have them, through `anomaly batch`: the rows are counted in the files that it writes."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from features.ulb import FEATURES
from model.synthetic.generator import TransactionGenerator
from pipelines import batch
from publisher.messages import MessageSource
from publisher.publish import write_jsonl
from tests.pipelines.batch_jobs import model_flags, write_lines

ROWS = 20


def table(rows: int = ROWS) -> pa.Table:
    """Rows with ids in the ULB layout."""
    names = {name: [float(i) for i in range(rows)] for name in FEATURES}
    return pa.table({"transaction_id": [f"t-{i}" for i in range(rows)], **names, "Class": [0] * rows})


@pytest.fixture
def score(tmp_path, model_dir):
    """Scores files; returns the exit status."""

    def run(source: str | Path, *flags: str) -> int:
        output = f"file://{tmp_path}/out"
        return batch.main([f"--input={source}", f"--output={output}", *model_flags(model_dir), *flags])

    return run


def ids(tmp_path: Path) -> list[str]:
    files = (tmp_path / "out").glob("scores-*.parquet")
    return sorted(key for path in files for key in pq.read_table(path)["transaction_id"].to_pylist())


IDS = sorted(table()["transaction_id"].to_pylist())


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "semicolons.csv", "part-00000", "quoted.csv"])
def test_csv_is_scored_whatever_its_dialect(tmp_path, score, name):
    sink = pa.BufferOutputStream()
    quoting = "all_valid" if name == "quoted.csv" else "needed"
    pc.write_csv(table(), sink, pc.WriteOptions(quoting_style=quoting))
    content = sink.getvalue().to_pybytes()
    if name == "semicolons.csv":
        content = content.replace(b",", b";").replace(b".", b",")
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert score(f"file://{path}") == 0
    assert ids(tmp_path) == IDS


def test_a_directory_of_spark_is_scored_with_its_keys(tmp_path, score):
    rows = table().drop_columns(["transaction_id"])
    for account in ("acc-1", "acc-2"):
        place = tmp_path / "in" / f"account_id={account}" / "day=1"
        place.mkdir(parents=True)
        pq.write_table(rows, place / "part-0")
        (place / ".part-0.crc").write_bytes(b"crc\x00")
    (tmp_path / "in" / "_SUCCESS").touch()
    assert score(tmp_path / "in") == 0
    (path,) = (tmp_path / "out").glob("scores-*.parquet")
    assert sorted(pq.read_table(path)["account_id"].to_pylist()) == ["acc-1"] * ROWS + ["acc-2"] * ROWS
    assert (tmp_path / "out" / "_SUCCESS").exists()
    # What a job has written is a directory of files itself.
    assert len(pq.read_table(tmp_path / "out" / path.name)) == 2 * ROWS


def test_parquet_named_pq(tmp_path, score):
    pq.write_table(table(), tmp_path / "rows.pq")
    assert score(tmp_path / "*.pq") == 0
    assert ids(tmp_path) == IDS


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv"])
def test_a_row_whose_id_is_not_utf_8_is_a_dead_letter_and_the_others_are_scored(tmp_path, score, name):
    keys = pa.array([b"M\xfcnchen", *(key.encode() for key in IDS[1:])]).view(pa.string())
    rows = table().set_column(0, "transaction_id", keys)
    (pq.write_table if name == "rows.parquet" else pc.write_csv)(rows, tmp_path / name)
    assert score(tmp_path / name) == 0
    assert ids(tmp_path) == IDS[1:]
    (letters,) = (tmp_path / "out").glob("error_records-*.parquet")
    reasons = pq.read_table(letters)["errorMessage"].to_pylist()
    assert reasons == ["transaction_id: not UTF-8 (invalid start byte at byte 1)"]


def test_blank_lines_are_no_messages(tmp_path, score, capsys):
    write_jsonl(tmp_path / "in.jsonl", MessageSource(TransactionGenerator(seed=1)), ROWS)
    lines = (tmp_path / "in.jsonl").read_bytes().splitlines()
    (tmp_path / "in.jsonl").write_bytes(b"\r\n\n".join(lines) + b"\n  \n\n")
    assert score(tmp_path / "in.jsonl") == 0
    told = capsys.readouterr().out
    assert f"rows in: {ROWS}," in told
    assert f"blank lines, which are no messages: {ROWS + 1}" in told


@pytest.mark.parametrize(("flags", "status"), [([], 0), (["0.5"], 0), (["0.2"], 1)])
def test_too_many_dead_letters_fail_the_job_when_all_is_written(tmp_path, score, capsys, flags, status):
    lines = [f"{line},1" if i < 8 else line for i, line in enumerate(csv_lines(table()))]
    (tmp_path / "in.csv").write_text("\n".join([HEADER, *lines]))
    assert score(tmp_path / "in.csv", *(f"--max_dead_letter_share={share}" for share in flags)) == status
    assert len(ids(tmp_path)) == ROWS - 8
    if status:
        error = capsys.readouterr().err
        assert (
            "--max_dead_letter_share: expected at most 20.00% dead letters, got 8 of 20 rows (40.00%)"
            in error
        )


def test_a_job_that_scores_no_row_fails(tmp_path, score, capsys):
    (tmp_path / "in.jsonl").write_text('{"a": 1}\n' * 3)
    assert score(tmp_path / "in.jsonl") == 1
    assert "error: none of 3 rows was scored: column errorMessage of error_records" in capsys.readouterr().err
    (letters,) = (tmp_path / "out").glob("error_records-*.parquet")
    assert len(pq.read_table(letters)) == 3


HEADER = ",".join(table(1).column_names)


def csv_lines(rows: pa.Table) -> list[str]:
    return [",".join(map(str, row.values())) for row in rows.to_pylist()]


@pytest.mark.integration
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_names_path_and_flag_and_leaves_nothing(
    small_disk, tmp_path, model_dir, capsys, processes
):
    write_lines(tmp_path / "in.jsonl", 20_000)
    flags = [f"--input={tmp_path}/in.jsonl", f"--output={small_disk}/out", f"--processes={processes}"]
    assert batch.main([*flags, *model_flags(model_dir)]) == 1
    *_, error = capsys.readouterr().err.splitlines()
    # One set of files fills the disk, and another may be the first to find no room.
    file = rf"{small_disk}/out/_temporary/\w+/(scores|alerts)/\w+\.parquet"
    advice = "make room there, or write to another place"
    assert re.fullmatch(rf"error: --output: cannot write {file}: No space left on device; {advice}", error)
    assert list((small_disk / "out").iterdir()) == []
