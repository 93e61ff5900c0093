"""The BigQuery tables of the project and the views over them; no other module declares them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import requests
from google.api_core.exceptions import Conflict, Forbidden, GoogleAPICallError, NotFound, RetryError
from google.cloud import bigquery
from google.cloud.bigquery.retry import DEFAULT_RETRY

from common import google
from common.retry import LOOK_SECONDS
from transforms.schema import (
    ALERTS,
    ERROR_RECORDS,
    FEATURE_PROFILES,
    SCORE_WINDOWS,
    SCORES,
    SCORES_FULL,
    to_bigquery,
)
from transforms.table_columns import TableError, missing_columns, with_members

SCORES_TABLE: Final = "scores"
ALERTS_TABLE: Final = "alerts"
ERRORS_TABLE: Final = "error_records"
REPLAYED_TABLE: Final = "replayed_records"
WINDOWS_TABLE: Final = "score_windows"
PROFILES_TABLE: Final = "feature_profiles"

REPLAYED_RECORDS: Final = pa.schema(
    [
        pa.field(name, kind, nullable=False, metadata={"description": description})
        for name, kind, description in (
            ("letter", pa.string(), "Hash of the columns that tell one dead letter from another"),
            ("attempt", pa.int64(), "The attempt that the message was sent with, from 1"),
            ("topic", pa.string(), "The topic that it was sent to"),
            ("replayed_at", pa.timestamp("us", tz="UTC"), "When the topic had confirmed it"),
        )
    ]
)

TRANSACTION_KEY: Final = ("transaction_id", "IF(event_time_derived, NULL, event_time)")
"""Equal for the copies of a transaction. The id alone would do where the event time is the transaction's own,
for copies then have the same; where it was derived, each publication and each job has given another."""
TRANSACTION_PARTS: Final = (
    ("event_time_derived IS NOT TRUE", ("transaction_id", "event_time")),
    ("event_time_derived", ("transaction_id",)),
)
"""TRANSACTION_KEY in two parts, each a condition and its key. BigQuery prunes partitions through a view only
for a column that the view partitions its window by: the first part prunes, the second reads all days."""
LETTER_KEY: Final = (
    "stage",
    "errorMessage",
    "attempt",
    "payloadBytes",
    # Two equal messages differ in their attributes, which hold the message id. A redelivered message may have
    # them in another order.
    "TO_JSON_STRING(ARRAY(SELECT pair FROM UNNEST(attributes) AS pair ORDER BY pair.key, pair.value))",
)
"""Equal for the copies of a dead letter."""


_CALL_SECONDS: Final = 60.0
"""Google's client would try for ten minutes. The first call shows in LOOK_SECONDS whether it answers."""
_RETRY: Final = DEFAULT_RETRY.with_timeout(LOOK_SECONDS)
_LOOK: Final = "roles/bigquery.metadataViewer"
_EDIT: Final = "roles/bigquery.dataEditor"


class NoAnswerError(RuntimeError):
    """BigQuery does not answer; the text names the address."""


class AccessError(TableError):
    """The caller may not do what is still to be done; the text names the thing and the roles.

    Attributes:
      on_dataset: the narrowest role on the dataset that is enough; "" where none is.
      on_project: the narrowest role that it also takes on the project; "" for none.
    """

    def __init__(self, text: str, on_dataset: str, on_project: str) -> None:
        super().__init__(text)
        self.on_dataset = on_dataset
        self.on_project = on_project


@dataclass(frozen=True)
class TableSpec:
    """One table and its deduplicating view.

    The same row can be stored more than once: a retried bundle of a streaming job appends it again, and the
    same transaction may be scored by a streaming and by a batch job. Its id is the same then.

    Attributes:
      name: of the table.
      schema: its columns, as Arrow.
      description: shown in BigQuery.
      partition_field: TIMESTAMP column of the daily partitions.
      clustering: columns by which a partition is sorted.
      view: name of the view that keeps one of each row.
      view_description: shown in BigQuery.
      key: SQL expressions that are equal for copies of a row.
      latest: columns of which the view keeps the copy with the greatest values, the first column first.
      parts: conditions that part the rows, each with the key of its rows; all rows with `key` when empty.
    """

    name: str
    schema: pa.Schema
    description: str
    partition_field: str
    clustering: tuple[str, ...]
    view: str
    view_description: str
    key: tuple[str, ...]
    latest: tuple[str, ...]
    parts: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def table(self, dataset: str) -> bigquery.Table:
        """The table as the BigQuery client creates it; `dataset` is "PROJECT.DATASET"."""
        table = bigquery.Table(f"{dataset}.{self.name}", schema=to_bigquery(self.schema))
        table.description = self.description
        table.time_partitioning = bigquery.TimePartitioning(
            type_=bigquery.TimePartitioningType.DAY, field=self.partition_field
        )
        table.clustering_fields = list(self.clustering)
        return table

    def view_sql(self, dataset: str) -> str:
        """The query of the view: one row per key, the latest."""
        order = ", ".join(f"{column} DESC" for column in self.latest)
        return " UNION ALL ".join(
            f"SELECT * FROM `{dataset}.{self.name}` WHERE {condition} "  # noqa: S608 - names are validated
            f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {', '.join(key)} ORDER BY {order}) = 1"
            for condition, key in self.parts or (("TRUE", self.key),)
        )

    def create_view_sql(self, dataset: str) -> str:
        """The statement that creates the view, or brings it up to date."""
        return (
            f"CREATE OR REPLACE VIEW `{dataset}.{self.view}` "
            f"OPTIONS (description = '{self.view_description}') AS {self.view_sql(dataset)}"
        )


def scores_table(full: bool = False, name: str = SCORES_TABLE) -> TableSpec:
    """The table of scores; `full` for --output_detail=full, with every output of the model."""
    return TableSpec(
        name=name,
        schema=SCORES_FULL if full else SCORES,
        description="Anomaly scores of card transactions, one row for each time a transaction was scored",
        partition_field="event_time",
        clustering=("event_time_derived", "severity", "account_id", "transaction_id"),
        view=f"{name}_latest",
        view_description="The latest score of each transaction",
        key=TRANSACTION_KEY,
        latest=("scored_at", "event_time"),
        parts=TRANSACTION_PARTS,
    )


def alerts_table(name: str = ALERTS_TABLE) -> TableSpec:
    """The table of alerts."""
    return TableSpec(
        name=name,
        schema=ALERTS,
        description="Transactions whose anomaly score reached a threshold",
        partition_field="event_time",
        clustering=("event_time_derived", "severity", "account_id"),
        view=f"{name}_latest",
        view_description="The latest alert of each transaction, also where a later score is normal",
        key=TRANSACTION_KEY,
        latest=("scored_at", "event_time"),
        parts=TRANSACTION_PARTS,
    )


def error_records_table(name: str = ERRORS_TABLE) -> TableSpec:
    """The table of dead letters."""
    return TableSpec(
        name=name,
        schema=ERROR_RECORDS,
        description="Messages and rows that could not be parsed, scored or stored, with the reason",
        partition_field="timestamp",
        clustering=("stage",),
        view=f"{name}_latest",
        view_description="Each rejected message once for each stage, reason and attempt",
        key=LETTER_KEY,
        latest=("timestamp",),
    )


def score_windows_table() -> TableSpec:
    """The table of scores summed up by windows of event time."""
    return TableSpec(
        name=WINDOWS_TABLE,
        schema=SCORE_WINDOWS,
        description="Scores summed up by windows of event time, one row for each state of a window",
        partition_field="window_start",
        clustering=("window_seconds", "model_version"),
        view=f"{WINDOWS_TABLE}_latest",
        view_description="The last state of each window, one row for each run and model version",
        key=("window_start", "window_seconds", "model_version", "run_id"),
        latest=("pane", "computed_at"),
    )


def feature_profiles_table() -> TableSpec:
    """The table of what models saw of their features."""
    return TableSpec(
        name=PROFILES_TABLE,
        schema=FEATURE_PROFILES,
        description="Values of features and score by bins of the training, one row for each count",
        partition_field="profiled_at",
        clustering=("model_version", "feature"),
        view=f"{PROFILES_TABLE}_latest",
        view_description="Each count once",
        key=("profile_id", "model_version", "feature"),
        latest=("profiled_at",),
    )


def replayed_records_table(name: str = REPLAYED_TABLE) -> TableSpec:
    """The table of the dead letters that operations.replay has sent; that command alone creates it."""
    return TableSpec(
        name=name,
        schema=REPLAYED_RECORDS,
        description="Dead letters that operations.replay has sent again",
        partition_field="replayed_at",
        clustering=("letter",),
        view=f"{name}_latest",
        view_description="The latest replay of each dead letter",
        key=("letter",),
        latest=("replayed_at",),
    )


TABLES: Final[tuple[TableSpec, ...]] = (
    scores_table(),
    alerts_table(),
    error_records_table(),
    score_windows_table(),
    feature_profiles_table(),
)


def create_tables(
    client: bigquery.Client,
    dataset: str,
    tables: Sequence[TableSpec] = TABLES,
    location: str | None = None,
) -> None:
    """Creates the dataset, the tables and the views where they do not exist yet; safe to call again.

    Everything is looked up first, and what is as declared is left alone. BigQuery checks the right to create
    before it looks whether the thing exists. An existing table gets the nullable columns that it lacks. Rows
    are never touched.

    Args:
      client: a BigQuery client.
      dataset: "PROJECT.DATASET", or "DATASET" in the client's project.
      tables: to create.
      location: of a new dataset; the client's default when None.

    Raises:
      NoAnswerError: BigQuery does not answer for 20 s.
      AccessError: something is missing or differs, and the caller may not change that.
      TableError: an existing table has other types, or lacks a REQUIRED column.
    """
    reference = bigquery.DatasetReference.from_string(dataset, default_project=client.project)
    full_name = f"{reference.project}.{reference.dataset_id}"
    try:
        _create_dataset(client, reference, location or client.location)
    except (RetryError, requests.exceptions.RequestException) as error:
        cause = error.cause if isinstance(error, RetryError) else error
        address = client._connection.API_BASE_URL
        raise NoAnswerError(f"no answer at {address} for {LOOK_SECONDS:.0f} s: {cause}") from error
    for spec in tables:
        _create_table(client, spec, full_name)
        _create_view(client, spec, full_name)


@contextmanager
def _needs(step: str, on_dataset: str = "", on_project: str = "") -> Iterator[None]:
    """Says which roles a step takes that BigQuery denies.

    Raises:
      AccessError: the caller lacks a permission.
    """
    try:
        yield
    except Forbidden as error:
        problem = google.explain(error)
        if problem.kind != "forbidden":
            raise
        places = (("dataset", on_dataset), ("project", on_project))
        roles = " and ".join(f"{role} on the {place}" for place, role in places if role)
        raise AccessError(f"{step} takes {roles}: {problem.text}", on_dataset, on_project) from error


def _create_dataset(
    client: bigquery.Client, reference: bigquery.DatasetReference, location: str | None
) -> None:
    name = f"{reference.project}.{reference.dataset_id}"
    try:
        with _needs(f"looking at dataset {name}", _LOOK):
            client.get_dataset(reference, retry=_RETRY, timeout=LOOK_SECONDS)
    except NotFound:
        new = bigquery.Dataset(reference)
        if location:
            new.location = location
        with _needs(f"dataset {name} does not exist, and making it", on_project="roles/bigquery.user"):
            client.create_dataset(new, exists_ok=True, retry=_RETRY, timeout=_CALL_SECONDS)


def _look(client: bigquery.Client, name: str) -> bigquery.Table | None:
    """Looks up a table or a view; None where there is none."""
    try:
        with _needs(f"looking at {name}", _LOOK):
            return client.get_table(name, retry=_RETRY, timeout=_CALL_SECONDS)
    except NotFound:
        return None


def _create_table(client: bigquery.Client, spec: TableSpec, dataset: str) -> None:
    name = f"{dataset}.{spec.name}"
    existing = _look(client, name)
    if existing is None:
        try:
            with _needs(f"table {name} does not exist, and making it", _EDIT):
                client.create_table(spec.table(dataset), retry=_RETRY, timeout=_CALL_SECONDS)
            return
        except Conflict:  # another process was faster
            existing = client.get_table(name, retry=_RETRY, timeout=_CALL_SECONDS)
    columns = with_members(existing.schema, spec.schema)
    try:
        missing = missing_columns(columns, spec.schema)
    except TableError as error:
        raise TableError(f"Table {name}: {error}. Use another table name.") from None
    required = [field.name for field in missing if field.mode == "REQUIRED"]
    if required:
        raise TableError(
            f"Table {name} lacks {', '.join(required)}. REQUIRED columns cannot be added "
            "to an existing table. Use another table name."
        )
    extended = [new for new, old in zip(columns, existing.schema, strict=True) if new != old]
    if missing or extended:
        existing.schema = [*columns, *missing]
        lacks = ", ".join(field.name for field in (*missing, *extended))
        with _needs(f"table {name} lacks {lacks}, and adding it", _EDIT):
            client.update_table(existing, ["schema"], retry=_RETRY, timeout=_CALL_SECONDS)


def _create_view(client: bigquery.Client, spec: TableSpec, dataset: str) -> None:
    name = f"{dataset}.{spec.view}"
    existing = _look(client, name)
    if all(actual == declared for actual, declared in view_settings(existing, spec, dataset).values()):
        return
    state = (
        "does not exist, and making it" if existing is None else "is not the declared one, and replacing it"
    )
    try:
        with _needs(f"view {name} {state}", _EDIT, "roles/bigquery.jobUser"):
            client.query_and_wait(spec.create_view_sql(dataset), retry=_RETRY, api_timeout=_CALL_SECONDS)
    except GoogleAPICallError as error:
        raise TableError(f"View {name} cannot be created: {error.message}") from error


def view_settings(view: bigquery.Table | None, spec: TableSpec, dataset: str) -> dict[str, tuple[Any, Any]]:
    """Names the settings of a view, each as it is and as it is declared.

    BigQuery keeps the columns that a view had when it was made, so that they lag behind those of its table.
    """
    columns = {field.name for field in view.schema} if view else set()
    missing = [name for name in spec.schema.names if name not in columns]
    return {
        "query": (" ".join(((view and view.view_query) or "").split()) or None, spec.view_sql(dataset)),
        "description": (view.description if view else None, spec.view_description),
        "missing columns": (", ".join(missing) or None, None),
    }
