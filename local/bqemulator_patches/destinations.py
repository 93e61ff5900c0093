"""The table that a load, a copy or a query writes: whether it may, the schema afterwards, and the writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import tables
from bqemulator.catalog.models import TableFieldSchema, TableMeta, TableSchema
from bqemulator.domain.errors import NotFoundError, UnsupportedFeatureError, ValidationError

from local.bqemulator_patches import rows
from local.bqemulator_patches.engine import transaction
from local.bqemulator_patches.failures import JobError
from local.bqemulator_patches.rows import wire_type

_CREATE: Final = ("CREATE_IF_NEEDED", "CREATE_NEVER")
_WRITE: Final = ("WRITE_EMPTY", "WRITE_APPEND", "WRITE_TRUNCATE", "WRITE_TRUNCATE_DATA")
_LAYOUT: Final = ("timePartitioning", "rangePartitioning", "clustering")
_PARTITION_TYPES: Final = ("TIMESTAMP", "DATE", "DATETIME")


@dataclass(frozen=True)
class Destination:
    """The table that a job writes, and the way it does.

    Attributes:
      create: createDisposition.
      write: writeDisposition.
      properties: A new table has them: partitioning, clustering, description, labels, in the shape of REST.
      options: schemaUpdateOptions.
    """

    project_id: str
    dataset_id: str
    table_id: str
    create: str
    write: str
    properties: dict[str, Any]
    options: tuple[str, ...]

    @classmethod
    def of(cls, project_id: str, config: dict[str, Any], default_write: str) -> Destination:
        """The destination of a job's configuration.

        Raises:
          ValidationError: it names no table, or has an unknown disposition.
          UnsupportedFeatureError: it names one partition.
        """
        table = config.get("destinationTable") or {}
        if not (table.get("datasetId") and table.get("tableId")):
            raise ValidationError("Required parameter is missing: destinationTable")
        if "$" in table["tableId"]:
            raise UnsupportedFeatureError(
                f"The local BigQuery writes whole tables: expected TABLE, got {table['tableId']!r}."
            )
        create = config.get("createDisposition") or _CREATE[0]
        write = config.get("writeDisposition") or default_write
        for name, value, known in (
            ("createDisposition", create, _CREATE),
            ("writeDisposition", write, _WRITE),
        ):
            if value not in known:
                raise ValidationError(f"Invalid value for {name}: {value} is not a valid value")
        properties = {key: config[key] for key in _LAYOUT if config.get(key)}
        return cls(
            project_id=table.get("projectId") or project_id,
            dataset_id=table["datasetId"],
            table_id=table["tableId"],
            create=create,
            write=write,
            properties=(config.get("destinationTableProperties") or {}) | properties,
            options=tuple(config.get("schemaUpdateOptions") or ()),
        )

    @property
    def label(self) -> str:
        """The table's name as BigQuery's messages write it."""
        return f"{self.project_id}:{self.dataset_id}.{self.table_id}"

    def sets_schema(self, existing: TableMeta | None) -> bool:
        """Tells whether the table takes the schema of what is written; one without a schema does."""
        return existing is None or self.write == "WRITE_TRUNCATE" or not existing.schema_.fields


def find(ctx: AppContext, destination: Destination) -> TableMeta | None:
    """The destination's table, or None where the job is to make it.

    Raises:
      NotFoundError: there is no such dataset.
      JobError: the dispositions forbid the job.
    """
    if ctx.catalog.get_dataset(destination.project_id, destination.dataset_id) is None:
        raise NotFoundError(f"Not found: Dataset {destination.project_id}:{destination.dataset_id}")
    table = source(ctx, destination.project_id, destination.dataset_id, destination.table_id)
    if table is None and destination.create == "CREATE_NEVER":
        raise JobError("notFound", f"Not found: Table {destination.label}")
    if table is not None and destination.write == "WRITE_EMPTY" and rows.count(ctx, table):
        raise JobError("duplicate", f"Already Exists: Table {destination.label}")
    return table


def source(ctx: AppContext, project_id: str, dataset_id: str, table_id: str) -> TableMeta | None:
    """A table that a job reads or writes, or None. Raises JobError where it is a view."""
    table = ctx.catalog.get_table(project_id, dataset_id, table_id)
    if table is not None and table.table_type in ("VIEW", "MATERIALIZED_VIEW"):
        raise JobError(
            "invalid",
            f"{project_id}:{dataset_id}.{table_id} is not allowed for this operation because it is "
            f"currently a {table.table_type}.",
        )
    return table


def plan(
    ctx: AppContext,
    destination: Destination,
    existing: TableMeta | None,
    fields: Sequence[dict[str, Any]],
    *,
    strict: bool = True,
) -> TableMeta:
    """The table as it is after the job.

    Args:
      existing: What `find` gave.
      fields: The schema of what is written, in the shape of REST.
      strict: Whether types and modes must be the table's. Types of a query's result are DuckDB's and differ.

    Raises:
      JobError: the schema or the partitioning does not go with the table.
    """
    body = {"tableReference": {"tableId": destination.table_id}, "schema": {"fields": _wired(fields)}}
    fresh = tables._rest_to_table_meta(
        destination.project_id, destination.dataset_id, body | destination.properties, ctx.clock
    )
    if existing is None:
        _check_layout(fresh)
        return fresh
    if any(key in destination.properties for key in _LAYOUT) and layout(fresh) != layout(existing):
        raise JobError(
            "invalid",
            "Incompatible table partitioning specification. Expects partitioning specification "
            f"{layout(existing)}, but input partitioning specification is {layout(fresh)}",
        )
    schema = fresh.schema_
    if not destination.sets_schema(existing):
        schema = TableSchema(fields=_merge(destination, existing, schema.fields, strict))
    changed = existing.model_copy(update={"schema_": schema, "last_modified_time": ctx.clock.now()})
    _check_layout(changed)
    return changed


def write(
    ctx: AppContext, destination: Destination, existing: TableMeta | None, planned: TableMeta, data: pa.Table
) -> None:
    """Write rows and schema, or nothing. The caller holds the write lock.

    Args:
      existing: What `find` gave.
      planned: What `plan` gave.
      data: Rows whose columns are among those of `planned`.
    """
    with transaction(ctx.engine):
        if destination.sets_schema(existing) or destination.write == "WRITE_TRUNCATE_DATA":
            if existing is not None:
                rows.drop(ctx, existing)
            rows.create(ctx, planned)
        elif existing is not None:
            rows.add_columns(ctx, existing, planned)
        rows.insert(ctx, planned, data)
        stored = planned.model_copy(update={"num_rows": rows.count(ctx, planned)})
        # Last, because the catalog is in memory as well, where nothing is rolled back.
        (ctx.catalog.create_table if existing is None else ctx.catalog.update_table)(stored)
    ctx.snapshots.record_change(destination.project_id, destination.dataset_id, destination.table_id)


def layout(table: TableMeta) -> str:
    """Partitioning and clustering as BigQuery's messages write them; "none" without."""
    parts = []
    if table.time_partitioning is not None:
        field = f",field:{table.time_partitioning.field}" if table.time_partitioning.field else ""
        parts.append(f"interval(type:{table.time_partitioning.type.lower()}{field})")
    if table.range_partitioning is not None:
        spec = table.range_partitioning
        parts.append(f"range(field:{spec.field},start:{spec.start},end:{spec.end},interval:{spec.interval})")
    if table.clustering is not None:
        parts.append(f"clustering({','.join(table.clustering.fields)})")
    return " ".join(parts) or "none"


def _check_layout(table: TableMeta) -> None:
    kinds = {field.name.lower(): field.type for field in table.schema_.fields}
    by = table.time_partitioning or table.range_partitioning
    if by is not None and by.field:
        kind = kinds.get(by.field.lower())
        if kind is None:
            raise JobError("invalid", "The field specified for partitioning cannot be found in the schema.")
        if by is table.time_partitioning and kind not in _PARTITION_TYPES:
            raise JobError(
                "invalid",
                "The field specified for time partitioning can only be of type TIMESTAMP, DATE or DATETIME. "
                f"The type found is: {kind}.",
            )
    for name in table.clustering.fields if table.clustering else ():
        if name.lower() not in kinds:
            raise JobError(
                "invalid",
                f"The field specified for clustering cannot be found in the schema. Invalid field: {name}.",
            )


def _wired(fields: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fields with the names of their types that tables.get gives: INTEGER for INT64."""
    result = []
    for field in fields:
        nested = {"fields": _wired(field["fields"])} if field.get("fields") else {}
        mode = field.get("mode") or "NULLABLE"
        result.append(field | {"type": wire_type(field.get("type", "STRING")), "mode": mode} | nested)
    return result


def _merge(
    destination: Destination, existing: TableMeta, new: Sequence[TableFieldSchema], strict: bool
) -> tuple[TableFieldSchema, ...]:
    """The fields of a table that rows with the fields `new` are added to."""
    prefix = (
        f"Provided Schema does not match Table {destination.label}." if strict else "Invalid schema update."
    )
    given = {field.name.lower(): field for field in new}
    merged = []
    for old in existing.schema_.fields:
        field = given.pop(old.name.lower(), None)
        if strict:
            old = _same(prefix, old, field, "", "ALLOW_FIELD_RELAXATION" in destination.options)
        merged.append(old)
    for field in given.values():
        if "ALLOW_FIELD_ADDITION" not in destination.options:
            raise JobError("invalid", f"{prefix} Cannot add fields (field: {field.name})")
        if field.mode == "REQUIRED":
            raise JobError(
                "invalid", f"{prefix} Cannot add required fields to an existing schema. (field: {field.name})"
            )
        merged.append(field)
    return tuple(merged)


def _same(
    prefix: str, old: TableFieldSchema, new: TableFieldSchema | None, path: str, relax: bool
) -> TableFieldSchema:
    """The column `old` after rows with the column `new` are added, or JobError where they cannot be."""
    name = f"{path}{old.name}"
    if new is None:
        if old.mode == "REQUIRED":
            raise JobError("invalid", f"{prefix} Field {name} is missing in new schema")
        return old
    if _shape(old) != _shape(new):
        message = f"Field {name} has changed type from {_shape(old)} to {_shape(new)}"
        raise JobError("invalid", f"{prefix} {message}")
    if old.mode == "REQUIRED" and new.mode != "REQUIRED":
        if not relax:
            message = f"Field {name} has changed mode from REQUIRED to {new.mode}"
            raise JobError("invalid", f"{prefix} {message}")
        old = old.model_copy(update={"mode": "NULLABLE"})
    inner = {field.name.lower(): field for field in new.fields}
    for child in old.fields:
        _same(prefix, child, inner.pop(child.name.lower(), None), f"{name}.", relax)
    if inner:
        extra = next(iter(inner.values())).name
        raise JobError("invalid", f"{prefix} Cannot add fields (field: {name}.{extra})")
    return old


def _shape(field: TableFieldSchema) -> str:
    kind = wire_type(field.type)
    return f"REPEATED {kind}" if field.mode == "REPEATED" else kind
