"""Input and output of batch jobs that are compared with each other: same rows, whatever runs them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from model import artifact
from model.synthetic.generator import TransactionGenerator
from publisher import malformed
from publisher.messages import MessageSource
from publisher.publish import write_jsonl

TABLES = ("scores", "alerts", "error_records")


def write_lines(path: Path, rows: int, seed: int = 0) -> None:
    """Writes messages of every kind as JSON lines; those of one `seed` have the same ids.

    Not empty ones, which are no lines.
    """
    generator = TransactionGenerator(seed=seed, fraud_share=0.03)
    kinds = [name for name in malformed.fitting("ulb") if name != "empty"]
    write_jsonl(path, MessageSource(generator, malformed_share=0.02, malformed_kinds=kinds), rows)


def model_flags(model_dir: Path) -> list[str]:
    """Returns flags of a model trained on random rows, with thresholds that some rows reach."""
    medium = artifact.verify(str(model_dir)).thresholds["medium"]
    return [f"--model={model_dir}", f"--medium_threshold={medium}", f"--high_threshold={medium * 10}"]


_TIMES = frozenset(("scored_at", "read_at", "stored_at"))


def comparable(rows: pa.Table) -> pa.Table:
    """Returns rows in an order of their own, without the moments of the job."""
    if "transaction_id" in rows.column_names:
        return (
            rows.drop_columns([*_TIMES.intersection(rows.column_names)])
            .sort_by("transaction_id")
            .combine_chunks()
        )
    reasons = rows.column("errorMessage").to_pylist()
    columns = {name: rows.column(name) for name in ("payloadBytes", "stage")} | {"reason": pa.array(reasons)}
    return pa.table(columns).sort_by([(name, "ascending") for name in columns]).combine_chunks()


def output_rows(directory: Path) -> dict[str, pa.Table]:
    """Returns the rows that a job has written to files, by table."""
    files = {name: sorted(directory.glob(f"{name}-*.parquet")) for name in TABLES}
    return {name: comparable(pa.concat_tables(map(pq.read_table, paths))) for name, paths in files.items()}
