"""BigQuery as a source and a sink of record batches."""

from transforms.bigquery.answers import AppendError, AppendOptions, TransientAppendError
from transforms.bigquery.methods import METHODS
from transforms.bigquery.rows import SchemaMismatchError
from transforms.bigquery.sink import Commit, WriteBatches, Written
from transforms.bigquery.source import ReadBatches, ReadError
from transforms.bigquery.streams import CommitError

__all__ = [
    "METHODS",
    "AppendError",
    "AppendOptions",
    "Commit",
    "CommitError",
    "ReadBatches",
    "ReadError",
    "SchemaMismatchError",
    "TransientAppendError",
    "WriteBatches",
    "Written",
]
