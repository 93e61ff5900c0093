"""The BigQuery dataset, its tables with their views, and who may write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from cloud.resources.base import (
    LABEL,
    MISSING,
    Clients,
    Difference,
    Resource,
    ResourceError,
    State,
    StaysError,
    differences,
    has_label,
)
from transforms import tables
from transforms.schema import to_bigquery
from transforms.table_columns import TableError, column_kind, with_members


@dataclass(frozen=True)
class Dataset(Resource):
    """A dataset; `name` is "PROJECT.DATASET".

    Attributes:
      location: region or multi-region. It cannot be changed later.
      writer: e-mail address of the service account that may write and read its tables.
      kms_key: full name of the key that encrypts new tables; Google's own when empty.
    """

    kind: ClassVar[str] = "dataset"
    creator_role: ClassVar[str] = "roles/bigquery.dataOwner"
    emulated: ClassVar[bool] = True
    data: ClassVar[bool] = True

    location: str = "US"
    writer: str = ""
    kms_key: str = ""

    def inspect(self, clients: Clients) -> State:
        """Compares location, label, key and writer."""
        try:
            dataset = clients.bigquery.get_dataset(self.name)
        except NotFound:
            return MISSING
        if clients.local_bigquery:
            return State("ok")  # one machine has one location and no accounts
        actual = {"location": (dataset.location or "").lower(), **_labels(dataset.labels)}
        declared = {"location": self.location.lower(), **_labels(LABEL)}
        if self.writer:
            actual["writer"] = self.writer if may_write(dataset, self.writer) else None
            declared["writer"] = self.writer
        if self.kms_key:
            encryption = dataset.default_encryption_configuration
            actual["key"] = encryption.kms_key_name if encryption else None
            declared["key"] = self.kms_key
        return State.of(differences(actual, declared, fixed=("location",)))

    def create(self, clients: Clients) -> None:
        """Makes the dataset, then lets the service account in."""
        dataset = bigquery.Dataset(self.name)
        dataset.description = "Scores, alerts and rejected messages of the transaction anomaly detection"
        dataset.location = self.location
        dataset.labels = LABEL
        self._encrypt(dataset)
        created = clients.bigquery.create_dataset(dataset, exists_ok=True)
        if self.writer and not clients.local_bigquery:
            self._admit(clients, created)

    def repair(self, clients: Clients, state: State) -> None:
        """Sets label, key and writer; a dataset keeps its location, and a table its key."""
        dataset = clients.bigquery.get_dataset(self.name)
        state.refuse_fixed(
            f"dataset {self.name}", f"Pass --dataset_location={dataset.location}, or another --dataset."
        )
        dataset.labels = {**dataset.labels, **LABEL}
        self._encrypt(dataset)
        fields = ["labels", *(["default_encryption_configuration"] if self.kms_key else [])]
        clients.bigquery.update_dataset(dataset, fields)
        if self.writer and not may_write(dataset, self.writer):
            self._admit(clients, dataset)

    def owned(self, clients: Clients) -> bool:
        """Looks for the label; everything in the local stack is this project's."""
        return clients.local_bigquery or has_label(clients.bigquery.get_dataset(self.name).labels)

    def delete(self, clients: Clients) -> None:
        """Removes the dataset, unless it holds more than the notes of `anomaly replay`."""
        notes = tables.replayed_records_table()
        left = {table.table_id for table in clients.bigquery.list_tables(self.name)}
        if left - {notes.name, notes.view}:
            raise StaysError(
                f"dataset {self.name}: it holds other tables. Remove them, or keep it with --keep_tables."
            )
        for name in (notes.view, notes.name):
            clients.bigquery.delete_table(f"{self.name}.{name}", not_found_ok=True)
        clients.bigquery.delete_dataset(self.name, not_found_ok=True)

    def _encrypt(self, dataset: bigquery.Dataset) -> None:
        if self.kms_key:
            dataset.default_encryption_configuration = bigquery.EncryptionConfiguration(self.kms_key)

    def _admit(self, clients: Clients, dataset: bigquery.Dataset) -> None:
        entry = bigquery.AccessEntry("WRITER", "userByEmail", self.writer)
        dataset.access_entries = [*dataset.access_entries, entry]
        clients.bigquery.update_dataset(dataset, ["access_entries"])


WRITE_ROLES: Final = ("WRITER", "OWNER", "roles/bigquery.dataEditor", "roles/bigquery.dataOwner")
READ_ROLES: Final = (*WRITE_ROLES, "READER", "roles/bigquery.dataViewer", "roles/bigquery.admin")


def may_write(dataset: bigquery.Dataset, account: str) -> bool:
    """Returns whether the access list of the dataset lets a service account write its tables."""
    return any(
        entry.entity_type == "userByEmail" and entry.entity_id == account and entry.role in WRITE_ROLES
        for entry in dataset.access_entries
    )


def may_read(dataset: bigquery.Dataset, account: str) -> bool:
    """Returns whether the access list of the dataset lets a service account read its tables."""
    everybody = ("allAuthenticatedUsers", "allUsers")  # as special group, or as member of IAM
    return any(
        entry.role in READ_ROLES and (entry.entity_id in everybody or entry.entity_id == account)
        for entry in dataset.access_entries
    )


@dataclass(frozen=True)
class Table(Resource):
    """A table with its deduplicating view; `name` is "PROJECT.DATASET.TABLE".

    Attributes:
      spec: the declaration; transforms.tables.scores_table and its neighbours.
    """

    kind: ClassVar[str] = "table"
    creator_role: ClassVar[str] = "roles/bigquery.dataOwner"
    emulated: ClassVar[bool] = True
    data: ClassVar[bool] = True

    spec: tables.TableSpec

    @property
    def dataset(self) -> str:
        """PROJECT.DATASET."""
        return self.name.rpartition(".")[0]

    def inspect(self, clients: Clients) -> State:
        """Compares columns with types and descriptions, partitioning, clustering, and the view's query."""
        try:
            table = clients.bigquery.get_table(self.name)
        except NotFound:
            return MISSING
        all_differences = table_differences(table, self.spec)
        if not clients.local_bigquery:
            # The emulator stores neither labels nor requirements of tables.
            all_differences += _cloud_differences(table, self.spec)
        return State.of([*all_differences, *self._view_differences(clients)])

    def create(self, clients: Clients) -> None:
        """Makes table and view where they are missing."""
        try:
            tables.create_tables(clients.bigquery, self.dataset, (self.spec,))
        except TableError as error:
            raise ResourceError(str(error)) from error
        if not clients.local_bigquery:
            # The view needs no label: `delete` removes it with its table.
            table = clients.bigquery.get_table(self.name)
            if not has_label(table.labels):
                table.labels = {**table.labels, **LABEL}
                clients.bigquery.update_table(table, ["labels"])

    def repair(self, clients: Clients, state: State) -> None:
        """Adds columns, sets descriptions, clustering and the view's query. Rows are never touched."""
        state.refuse_fixed(f"table {self.name}", "Copy its rows into a new table, or pass another --dataset.")
        self.create(clients)
        table = clients.bigquery.get_table(self.name)
        described = {field.name: field for field in to_bigquery(self.spec.schema)}
        table.schema = [with_description(field, described.get(field.name)) for field in table.schema]
        table.description = self.spec.description
        table.clustering_fields = list(self.spec.clustering)
        fields = ["schema", "description", "clustering_fields"]
        partitioning = table.time_partitioning
        if not clients.local_bigquery and partitioning is not None:
            if table.require_partition_filter:
                table.require_partition_filter = False
                fields.append("require_partition_filter")
            if partitioning.expiration_ms:
                partitioning.expiration_ms = None
                table.time_partitioning = partitioning
                fields.append("time_partitioning")
        clients.bigquery.update_table(table, fields)

    def owned(self, clients: Clients) -> bool:
        """Looks for the label, or for the description: earlier versions set no label."""
        table = clients.bigquery.get_table(self.name)
        return clients.local_bigquery or has_label(table.labels) or table.description == self.spec.description

    def delete(self, clients: Clients) -> None:
        """Removes view and table, rows included."""
        clients.bigquery.delete_table(f"{self.dataset}.{self.spec.view}", not_found_ok=True)
        clients.bigquery.delete_table(self.name, not_found_ok=True)

    def _view_differences(self, clients: Clients) -> list[Difference]:
        view = f"view {self.spec.view}"
        try:
            table = clients.bigquery.get_table(f"{self.dataset}.{self.spec.view}")
        except NotFound:
            return [Difference(view, None, "a view")]
        settings = tables.view_settings(table, self.spec, self.dataset)
        return differences(
            {f"{name} of {view}": actual for name, (actual, _) in settings.items()},
            {f"{name} of {view}": declared for name, (_, declared) in settings.items()},
        )


def column_differences(table: bigquery.Table, spec: tables.TableSpec) -> list[Difference]:
    """Compares the types of the declared columns; the actual type of a missing column is None.

    A record that only lacks members is no other type: they are added as columns are.
    """
    existing = {field.name.lower(): field for field in table.schema}
    extended = {field.name.lower(): field for field in with_members(table.schema, spec.schema)}
    columns = []
    for declared in to_bigquery(spec.schema):
        name = declared.name.lower()
        field = existing.get(name)
        kinds = (column_kind(field) if field else None, column_kind(declared))
        if field is not None and column_kind(extended[name]) == kinds[1]:
            there = {member.name.lower() for member in field.fields}
            columns += [
                Difference(f"column {declared.name}.{member.name}", None, column_kind(member))
                for member in declared.fields
                if member.name.lower() not in there
            ]
        elif kinds[0] != kinds[1]:
            columns.append(Difference(f"column {declared.name}", *kinds, fixable=field is None))
    return columns


def table_differences(table: bigquery.Table, spec: tables.TableSpec) -> list[Difference]:
    """Compares a table with its declaration: columns, partitioning, clustering, descriptions."""
    partitioning = table.time_partitioning
    descriptions = {
        f"description of column {field.name}": field.description
        for field in to_bigquery(spec.schema)
        if field.name in {column.name for column in table.schema}
    }
    actual = {f"description of column {field.name}": field.description for field in table.schema} | {
        "partitioning": f"{partitioning.field} by {partitioning.type_}" if partitioning else None,
        "clustering": ", ".join(table.clustering_fields or ()),
    }
    declared = {
        "partitioning": f"{spec.partition_field} by {bigquery.TimePartitioningType.DAY}",
        "clustering": ", ".join(spec.clustering),
        **descriptions,
    }
    return [*column_differences(table, spec), *differences(actual, declared, fixed=("partitioning",))]


def _cloud_differences(table: bigquery.Table, spec: tables.TableSpec) -> list[Difference]:
    """Compares the settings that only the real BigQuery stores."""
    partitioning = table.time_partitioning
    milliseconds = partitioning.expiration_ms if partitioning else None
    actual = {
        "days until partitions expire": int(milliseconds) / 86_400_000 if milliseconds else None,
        "required partition filter": table.require_partition_filter or None,
        "description": table.description,
        **_labels(table.labels),
    }
    declared = {
        "days until partitions expire": None,
        "required partition filter": None,
        "description": spec.description,
        **_labels(LABEL),
    }
    return differences(actual, declared)


def _labels(labels: Any) -> dict[str, Any]:
    """This project's labels among those of a thing, as settings."""
    return {f"label {key}": dict(labels).get(key) for key in LABEL}


def with_description(
    field: bigquery.SchemaField, declared: bigquery.SchemaField | None
) -> bigquery.SchemaField:
    """Returns the column with the declared description; policy tags, default, collation and rounding stay."""
    if declared is None:
        return field
    return bigquery.SchemaField.from_api_repr({**field.to_api_repr(), "description": declared.description})
