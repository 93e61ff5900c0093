"""The BigQuery dataset, its tables with their views, and who may write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from cloud.resources.base import (
    LABEL,
    MISSING,
    Clients,
    Resource,
    ResourceError,
    State,
    StaysError,
    has_label,
)
from transforms import tables
from transforms.schema import to_bigquery


@dataclass(frozen=True)
class Dataset(Resource):
    """A dataset; `name` is "PROJECT.DATASET".

    Attributes:
      location: region or multi-region. It cannot be changed later.
      writer: e-mail address of the service account that may write and read its tables.
    """

    kind: ClassVar[str] = "dataset"
    emulated: ClassVar[bool] = True
    data: ClassVar[bool] = True

    location: str = "US"
    writer: str = ""

    def inspect(self, clients: Clients) -> State:
        """Location, label and writer."""
        try:
            found = clients.bigquery.get_dataset(self.name)
        except NotFound:
            return MISSING
        if clients.local_bigquery:
            return State("ok")  # one machine has one location and no accounts
        differences = []
        if (found.location or "").upper() != self.location.upper():
            differences.append(f"location is {found.location}, declared {self.location}")
        if not has_label(found.labels):
            differences.append(f"labels lack {LABEL}")
        if self.writer and not may_write(found, self.writer):
            differences.append(f"access lacks WRITER for {self.writer}")
        return State.of(differences)

    def create(self, clients: Clients) -> None:
        """Makes the dataset, then lets the service account in."""
        wanted = bigquery.Dataset(self.name)
        wanted.description = "Scores, alerts and rejected messages of the transaction anomaly detection"
        wanted.location = self.location
        wanted.labels = LABEL
        found = clients.bigquery.create_dataset(wanted, exists_ok=True)
        if self.writer and not clients.local_bigquery:
            self._admit(clients, found)

    def repair(self, clients: Clients, state: State) -> None:
        """Sets label and writer; the location stays what it is."""
        found = clients.bigquery.get_dataset(self.name)
        if any(detail.startswith("location") for detail in state.details):
            raise ResourceError(
                f"dataset {self.name}: {state.details[0]}. A dataset stays where it is: give "
                f"--dataset-location={found.location}, or another --dataset."
            )
        found.labels = {**found.labels, **LABEL}
        clients.bigquery.update_dataset(found, ["labels"])
        if self.writer and not may_write(found, self.writer):
            self._admit(clients, found)

    def owned(self, clients: Clients) -> bool:
        """By its label; whatever is in the local stack."""
        return clients.local_bigquery or has_label(clients.bigquery.get_dataset(self.name).labels)

    def delete(self, clients: Clients) -> None:
        """Removes the dataset where nothing is left in it but the notes of operations.replay."""
        notes = tables.replayed_records_table()
        left = {table.table_id for table in clients.bigquery.list_tables(self.name)}
        if left - {notes.name, notes.view}:
            raise StaysError(
                f"dataset {self.name}: it holds other tables. Remove them, or keep it with --keep-tables."
            )
        for name in (notes.view, notes.name):
            clients.bigquery.delete_table(f"{self.name}.{name}", not_found_ok=True)
        clients.bigquery.delete_dataset(self.name, not_found_ok=True)

    def remedy(self) -> str:
        """BigQuery's owner of data."""
        return "roles/bigquery.dataOwner"

    def _admit(self, clients: Clients, found: bigquery.Dataset) -> None:
        entry = bigquery.AccessEntry("WRITER", "userByEmail", self.writer)
        found.access_entries = [*found.access_entries, entry]
        clients.bigquery.update_dataset(found, ["access_entries"])


def may_write(found: bigquery.Dataset, account: str) -> bool:
    """Whether the dataset itself lets the service account of this e-mail address write its tables."""
    return any(
        entry.entity_type == "userByEmail"
        and entry.entity_id == account
        and entry.role in ("WRITER", "OWNER", "roles/bigquery.dataEditor", "roles/bigquery.dataOwner")
        for entry in found.access_entries
    )


@dataclass(frozen=True)
class Table(Resource):
    """A table with its deduplicating view; `name` is "PROJECT.DATASET.TABLE".

    Attributes:
      spec: the declaration; transforms.tables.scores_table and its neighbours.
    """

    kind: ClassVar[str] = "table"
    emulated: ClassVar[bool] = True
    data: ClassVar[bool] = True

    spec: tables.TableSpec

    @property
    def dataset(self) -> str:
        """PROJECT.DATASET."""
        return self.name.rpartition(".")[0]

    def inspect(self, clients: Clients) -> State:
        """Columns with types and descriptions, partitioning, clustering, and the view's query."""
        try:
            found = clients.bigquery.get_table(self.name)
        except NotFound:
            return MISSING
        differences = table_differences(found, self.spec)
        if not clients.local_bigquery:
            # The emulator stores neither labels nor requirements of tables.
            differences += _unmarked(found, self.spec)
        return State.of([*differences, *self._view_differences(clients)])

    def create(self, clients: Clients) -> None:
        """Makes table and view where they are missing."""
        try:
            tables.create_tables(clients.bigquery, self.dataset, (self.spec,))
        except tables.TableError as error:
            raise ResourceError(str(error)) from error
        if not clients.local_bigquery:
            # Not the view: it goes with its table, and every job that replaces it drops its labels.
            self._mark(clients, self.name)

    def repair(self, clients: Clients, state: State) -> None:
        """Adds columns, sets descriptions, clustering and the view's query. Rows are never touched."""
        fixed = [detail for detail in state.details if "cannot be changed" in detail]
        if fixed:
            raise ResourceError(
                f"table {self.name}: {'; '.join(fixed)}. Copy its rows into a new table, or use another "
                "--dataset."
            )
        self.create(clients)
        found = clients.bigquery.get_table(self.name)
        described = {field.name: field for field in to_bigquery(self.spec.schema)}
        found.schema = [_described(field, described.get(field.name)) for field in found.schema]
        found.description = self.spec.description
        found.clustering_fields = list(self.spec.clustering)
        fields = ["schema", "description", "clustering_fields"]
        partitioning = found.time_partitioning
        if not clients.local_bigquery and partitioning is not None:
            if found.require_partition_filter:
                found.require_partition_filter = False
                fields.append("require_partition_filter")
            if partitioning.expiration_ms:
                partitioning.expiration_ms = None
                found.time_partitioning = partitioning
                fields.append("time_partitioning")
        clients.bigquery.update_table(found, fields)

    def owned(self, clients: Clients) -> bool:
        """By its label, or the description that one has which was made before tables had labels."""
        found = clients.bigquery.get_table(self.name)
        return clients.local_bigquery or has_label(found.labels) or found.description == self.spec.description

    def delete(self, clients: Clients) -> None:
        """Removes view and table, rows included."""
        clients.bigquery.delete_table(f"{self.dataset}.{self.spec.view}", not_found_ok=True)
        clients.bigquery.delete_table(self.name, not_found_ok=True)

    def remedy(self) -> str:
        """BigQuery's owner of data."""
        return "roles/bigquery.dataOwner"

    def _view_differences(self, clients: Clients) -> list[str]:
        try:
            view = clients.bigquery.get_table(f"{self.dataset}.{self.spec.view}")
        except NotFound:
            return [f"view {self.spec.view} is missing"]
        # The emulator does not tell the query of a view.
        if clients.local_bigquery:
            return []
        differences = []
        if view.view_query != self.spec.view_sql(self.dataset):
            differences.append(f"view {self.spec.view} has another query")
        if view.description != self.spec.view_description:
            differences.append(f"view {self.spec.view} has another description")
        return differences

    def _mark(self, clients: Clients, name: str) -> None:
        found = clients.bigquery.get_table(name)
        if not has_label(found.labels):
            found.labels = {**found.labels, **LABEL}
            clients.bigquery.update_table(found, ["labels"])


def table_differences(found: bigquery.Table, spec: tables.TableSpec) -> list[str]:
    """What tells an existing table from its declaration, one line each; empty where they agree."""
    differences = []
    try:
        lacking = tables.missing_columns(found.schema, spec.schema)
        differences += [f"column {field.name} is missing" for field in lacking]
    except tables.TableError as error:
        differences.append(f"{error}, which cannot be changed")
    partition = found.time_partitioning.field if found.time_partitioning else None
    if partition != spec.partition_field:
        differences.append(
            f"partitioned by {partition or 'nothing'}, declared {spec.partition_field}; cannot be changed"
        )
    elif found.time_partitioning and found.time_partitioning.type_ != bigquery.TimePartitioningType.DAY:
        kind = found.time_partitioning.type_
        differences.append(f"partitioned by {kind}, declared DAY; cannot be changed")
    clustering = tuple(found.clustering_fields or ())
    if clustering != spec.clustering:
        differences.append(
            f"clustered by {', '.join(clustering) or 'nothing'}, declared {', '.join(spec.clustering)}"
        )
    columns = {field.name: field for field in found.schema}
    for wanted in to_bigquery(spec.schema):
        field: Any = columns.get(wanted.name)
        if field is not None and field.description != wanted.description:
            differences.append(f"column {wanted.name} has another description")
    return differences


def _unmarked(found: bigquery.Table, spec: tables.TableSpec) -> list[str]:
    """Differences in what only the real BigQuery stores."""
    differences = []
    expiration = found.time_partitioning.expiration_ms if found.time_partitioning else None
    if expiration:
        days = int(expiration) / 86_400_000
        differences.append(f"partitions expire after {days:g} days, declared never")
    if found.require_partition_filter:
        differences.append("a query must filter by partition, declared it need not")
    if found.description != spec.description:
        differences.append("it has another description")
    if not has_label(found.labels):
        differences.append(f"labels lack {LABEL}")
    return differences


def _described(field: bigquery.SchemaField, wanted: bigquery.SchemaField | None) -> bigquery.SchemaField:
    if wanted is None:
        return field
    return bigquery.SchemaField(
        field.name, field.field_type, mode=field.mode, description=wanted.description, fields=field.fields
    )
