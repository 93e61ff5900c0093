"""tables.get, tables.list, tables.insert and tabledata.list: what a table declares, and what it tells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import tabledata, tables
from bqemulator.catalog.models import RangePartitioning, TableMeta
from bqemulator.domain.errors import (
    ResourceRef,
    UnsupportedFeatureError,
    ValidationError,
    resource_not_found,
)
from bqemulator.jobs.executor import _ANONYMOUS_RESULTS_DATASET, JOB_RESULTS
from bqemulator.storage import type_map
from bqemulator.storage.arrow_bridge import arrow_table_to_bq_rows
from bqemulator.storage.sql_identifiers import quoted_table_ref
from fastapi import Depends, Query, Request

from local.bqemulator_patches import rows
from local.bqemulator_patches.replace import replace, replace_route
from local.bqemulator_patches.rest import context, paged
from local.bqemulator_patches.storage import job_of

# DuckDB has a GEOGRAPHY only with an extension that would be downloaded, and no decimal of 76 digits.
_NO_SUCH_TYPES: Final = ("GEOGRAPHY", "BIGNUMERIC", "BIGDECIMAL")
_NOT_IN_A_NAME: Final = re.compile(r'[!"$()*,./;?@\[\\\]^`{}~\x00-\x1f]')


def _check_fields(fields: Iterable[dict[str, Any]]) -> None:
    known: set[str] = set()
    for field in fields:
        name, kind = field["name"], str(field.get("type")).upper()
        if kind in _NO_SUCH_TYPES:
            raise UnsupportedFeatureError(f"The local BigQuery has no {kind}. Field: {name}.")
        if not name or len(name) > 300 or _NOT_IN_A_NAME.search(name):
            raise ValidationError(
                f'Invalid field name "{name}". Fields must contain only letters, numbers, and underscores, '
                "start with a letter or underscore, and be at most 300 characters long."
            )
        if name.lower() in known:
            raise ValidationError(f"Duplicate field name: {name}")
        known.add(name.lower())
        _check_fields(field.get("fields") or ())


def _range_partitioning(body: dict[str, Any]) -> RangePartitioning | None:
    declared = body.get("rangePartitioning")
    if not declared:
        return None
    bounds = {key: int(declared["range"][key]) for key in ("start", "end", "interval")}
    return RangePartitioning(field=declared["field"], **bounds)


def quote_nested_names() -> None:
    """Defect: a nested field whose name is a word of SQL (order, end) answers 500."""
    stock = type_map.bq_schema_to_duckdb_columns

    def columns(fields: list[dict[str, Any]]) -> list[tuple[str, str]]:
        result = []
        for field in fields:
            ((name, kind),) = stock([field])
            if field["type"].upper() in ("RECORD", "STRUCT"):
                inner = ", ".join(f'"{child}" {of}' for child, of in columns(field.get("fields") or []))
                kind = f"STRUCT({inner}){'[]' if kind.endswith('[]') else ''}"
            result.append((name, kind))
        return result

    replace(type_map, "bq_schema_to_duckdb_columns", columns)
    replace(tables, "bq_schema_to_duckdb_columns", columns)


def keep_what_a_table_declares() -> None:
    """Defects of tables.insert, tables.patch and tables.update.

    rangePartitioning, requirePartitionFilter and expirationTime are dropped. A label that is taken away, by a
    null, answers 500, as do a column of a type that DuckDB lacks, and a name that is none or given twice.
    """
    stock = tables._rest_to_table_meta

    def rest_to_table_meta(
        project_id: str, dataset_id: str, body: dict[str, Any], clock: Any, existing: TableMeta | None = None
    ) -> TableMeta:
        schema = body.get("schema") or {}  # `bq update` sends a null
        _check_fields(schema.get("fields") or ())
        labels = (existing.labels if existing else {}) | (body.get("labels") or {})
        kept = {key: value for key, value in labels.items() if value is not None}
        body = body | {"schema": schema, "labels": kept}
        meta = stock(project_id, dataset_id, body, clock, existing)
        update: dict[str, Any] = {
            "range_partitioning": _range_partitioning(body) or (existing and existing.range_partitioning),
            "expiration_time": existing and existing.expiration_time,
        }
        if "expirationTime" in body:
            millis = int(body["expirationTime"] or 0)
            update["expiration_time"] = datetime.fromtimestamp(millis / 1000, UTC) if millis else None
        if "requirePartitionFilter" in body and meta.time_partitioning is not None:
            required = {"require_partition_filter": bool(body["requirePartitionFilter"])}
            update["time_partitioning"] = meta.time_partitioning.model_copy(update=required)
        return meta.model_copy(update=update)

    replace(tables, "_rest_to_table_meta", rest_to_table_meta)


def _declared(table: TableMeta) -> dict[str, Any]:
    """Adds the fields that tables.get and tables.list both have, and the emulator 1.4.0 does not."""
    answer: dict[str, Any] = {}
    if table.friendly_name:
        answer["friendlyName"] = table.friendly_name
    if table.labels:
        answer["labels"] = table.labels
    if table.time_partitioning is not None:
        answer["timePartitioning"] = tables._time_partitioning_to_rest(table.time_partitioning)
        if table.time_partitioning.require_partition_filter:
            answer["requirePartitionFilter"] = True
    if table.range_partitioning is not None:
        spec = table.range_partitioning
        bounds = {key: str(getattr(spec, key)) for key in ("start", "end", "interval")}
        answer["rangePartitioning"] = {"field": spec.field, "range": bounds}
    if table.clustering is not None:
        answer["clustering"] = {"fields": list(table.clustering.fields)}
    if table.expiration_time is not None:
        answer["expirationTime"] = str(round(table.expiration_time.timestamp() * 1000))
    return answer


def show_what_a_table_declares() -> None:
    """Defects of tables.get and tables.list.

    The list lacks partitioning, clustering and labels. The query of a view, partitioning by range and the
    time of expiration are in neither.
    """
    stock_table, stock_item = tables._table_to_rest, tables._table_to_list_item

    def table_to_rest(table: TableMeta) -> dict[str, Any]:
        answer = stock_table(table) | _declared(table)
        if table.table_type == "VIEW":
            answer["view"] = {"query": table.view_query, "useLegacySql": table.use_legacy_sql}
        return answer

    def table_to_list_item(table: TableMeta) -> dict[str, Any]:
        answer = stock_item(table) | _declared(table)
        if table.table_type == "VIEW":
            answer["view"] = {"useLegacySql": table.use_legacy_sql}
        return answer

    replace(tables, "_table_to_rest", table_to_rest)
    replace(tables, "_table_to_list_item", table_to_list_item)


def _require_dataset(ctx: AppContext, project_id: str, dataset_id: str) -> None:
    if ctx.catalog.get_dataset(project_id, dataset_id) is None:
        raise resource_not_found(ResourceRef("dataset", project_id, dataset_id))


def look_for_the_dataset() -> None:
    """Defects of tables.insert, tables.list and tables.get.

    Without the dataset, the first answers 500 and the second an empty list. The list ends after one page.
    numRows leaves out what SQL statements insert and delete, and location is missing.
    """
    stock_insert, stock_get = tables.insert_table, tables.get_table

    async def insert_table(project_id: str, dataset_id: str, request: Request) -> dict[str, Any]:
        ctx = context(request)
        _require_dataset(ctx, project_id, dataset_id)
        return await stock_insert(project_id, dataset_id, request, ctx)

    def get_table(project_id: str, dataset_id: str, table_id: str, request: Request) -> dict[str, Any]:
        ctx = context(request)
        if dataset_id != _ANONYMOUS_RESULTS_DATASET:
            _require_dataset(ctx, project_id, dataset_id)
        answer = stock_get(project_id, dataset_id, table_id, ctx)
        table = ctx.catalog.get_table(project_id, dataset_id, table_id)
        if table is not None and table.table_type == "TABLE":
            answer["numRows"] = str(rows.count(ctx, table))
        dataset = ctx.catalog.get_dataset(project_id, dataset_id)
        return answer | {"location": dataset.location if dataset else "US"}

    def list_tables(
        project_id: str,
        dataset_id: str,
        ctx: AppContext = Depends(context),  # noqa: B008 - FastAPI's way
        max_results: int = Query(default=1000, alias="maxResults"),
        page_token: int = Query(default=0, alias="pageToken"),
    ) -> dict[str, Any]:
        _require_dataset(ctx, project_id, dataset_id)
        found = ctx.catalog.list_tables(project_id, dataset_id)
        page, following = paged(found, max_results, page_token)
        answer = {"kind": "bigquery#tableList", "totalItems": len(found)} | following
        return answer | {"tables": [tables._table_to_list_item(table) for table in page]}

    for name, function in (
        ("insert_table", insert_table),
        ("get_table", get_table),
        ("list_tables", list_tables),
    ):
        replace_route(tables.router, name, function)


def list_rows() -> None:
    """Defects of tabledata.list.

    It does not know the anonymous table of a query's result, gives the rows of a view, which BigQuery
    refuses, and answers 500 to an unknown column in `selectedFields`.
    """

    def list_tabledata(
        project_id: str,
        dataset_id: str,
        table_id: str,
        ctx: AppContext = Depends(context),  # noqa: B008 - FastAPI's way
        max_results: int = Query(default=10_000, alias="maxResults"),
        start_index: int = Query(default=0, alias="startIndex"),
        page_token: int | None = Query(default=None, alias="pageToken"),
        selected_fields: str = Query(default="", alias="selectedFields"),
    ) -> dict[str, Any]:
        start = start_index if page_token is None else page_token
        job = job_of(table_id) if dataset_id == _ANONYMOUS_RESULTS_DATASET else None
        if job is not None:
            data, total = JOB_RESULTS[job].slice(start, max_results), JOB_RESULTS[job].num_rows
        else:
            data, total = _stored_rows(ctx, (project_id, dataset_id, table_id), start, max_results)
        if names := [name.strip() for name in selected_fields.split(",") if name.strip()]:
            if unknown := [name for name in names if name not in data.column_names]:
                raise ValidationError(f"No such field: {unknown[0]}")
            data = data.select(names)
        answer: dict[str, Any] = {"kind": "bigquery#tableDataList", "totalRows": str(total)}
        answer["rows"] = arrow_table_to_bq_rows(data)
        following = start + data.num_rows
        return answer | ({"pageToken": str(following)} if data.num_rows and following < total else {})

    replace_route(tabledata.router, "list_tabledata", list_tabledata)


def _stored_rows(ctx: AppContext, names: tuple[str, str, str], start: int, size: int) -> tuple[pa.Table, int]:
    table = ctx.catalog.get_table(*names)
    if table is None:
        raise resource_not_found(ResourceRef("table", *names))
    if table.table_type == "VIEW":
        raise ValidationError(f"Cannot list a table of type {table.table_type}.")
    if not table.schema_.fields:
        return pa.table({}), 0
    sql = f"SELECT * FROM {quoted_table_ref(*names)} LIMIT {int(size)} OFFSET {int(start)}"  # noqa: S608
    return ctx.engine.fetch_arrow(sql), rows.count(ctx, table)


PATCHES = (
    quote_nested_names,
    keep_what_a_table_declares,
    show_what_a_table_declares,
    look_for_the_dataset,
    list_rows,
)
