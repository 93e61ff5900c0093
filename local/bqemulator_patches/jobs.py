"""Jobs: where a query writes its result, copies, extracts, SQL."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import duckdb
import pyarrow as pa
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import jobs, tables
from bqemulator.catalog.models import JobMeta
from bqemulator.domain.errors import NotFoundError, UnsupportedFeatureError
from bqemulator.jobs import executor
from bqemulator.jobs.executor import JOB_RESULTS, JOB_SCHEMAS
from sqlglot import exp
from sqlglot.parsers.bigquery import BigQueryParser

from local.bqemulator_patches import destinations, rows
from local.bqemulator_patches.destinations import Destination, layout
from local.bqemulator_patches.failures import JobError, done, failed
from local.bqemulator_patches.replace import replace


def name_columns_without_alias() -> None:
    """Defect: a column without an alias is called by DuckDB's text of it, `count_star()` instead of `f0_`."""
    stock = jobs.execute_query_job

    @functools.wraps(stock)
    async def execute(project_id: str, job_id: str, *args: Any, **kwargs: Any) -> JobMeta:
        meta = await stock(project_id, job_id, *args, **kwargs)
        fields, data = JOB_SCHEMAS.get(job_id, []), JOB_RESULTS.get(job_id)
        unnamed = [index for index, field in enumerate(fields) if not field["name"].isidentifier()]
        if unnamed and data is not None:
            names = list(data.column_names)
            for number, index in enumerate(unnamed):
                names[index] = f"f{number}_"
                fields[index] = fields[index] | {"name": names[index]}
            JOB_RESULTS[job_id] = data.rename_columns(names)
        return meta

    replace(jobs, "execute_query_job", execute)


def write_query_destination() -> None:
    """Defect: the table named as a query's destination is not written."""

    async def write_destination(
        *,
        job_meta: JobMeta,
        job_id: str,
        query_config: dict[str, Any],
        ctx: AppContext,
        caller: Any,
        request_project_id: str,
    ) -> JobMeta:
        target = query_config.get("destinationTable")
        is_select = (job_meta.statistics or {}).get("query", {}).get("statementType") == "SELECT"
        if not target or not is_select:
            return job_meta
        configuration = {
            "query": query_config | {"destinationTable": {"projectId": request_project_id} | target}
        }
        try:
            destination = Destination.of(request_project_id, query_config, "WRITE_EMPTY")
            data = JOB_RESULTS[job_id]
            if twice := sorted({name for name in data.column_names if data.column_names.count(name) > 1}):
                raise JobError(
                    "invalidQuery",
                    "Duplicate column names in the result are not supported when a destination table is "
                    f"present. Found duplicate(s): {', '.join(twice)}",
                )
            async with ctx.engine.write_lock():
                existing = destinations.find(ctx, destination)
                planned = destinations.plan(ctx, destination, existing, JOB_SCHEMAS[job_id], strict=False)
                destinations.write(ctx, destination, existing, planned, data)
        except (JobError, NotFoundError, duckdb.Error) as error:
            return failed(request_project_id, job_id, "QUERY", configuration, error, ctx)
        return job_meta.model_copy(update={"configuration": configuration})

    replace(jobs, "_apply_write_append", write_destination)


def keep_div_together() -> None:
    """Defect: `300 * DIV(x - 1, 300)` is translated to `300 * x - 1 // 300`. DIV gets its parentheses."""
    stock = BigQueryParser.FUNCTIONS["DIV"]
    BigQueryParser.FUNCTIONS["DIV"] = lambda args: exp.Paren(this=stock([exp.paren(arg) for arg in args]))


def copy_tables() -> None:
    """Defects of copy jobs.

    Of several sources one is copied. The default of writeDisposition is not WRITE_EMPTY, WRITE_TRUNCATE keeps
    the schema, and a failure is an answer of HTTP instead of a job that has failed.
    """
    stock = executor.execute_copy_job

    @functools.wraps(stock)
    async def copy(project_id: str, job_id: str, config: dict[str, Any], ctx: AppContext) -> JobMeta:
        settings = config["copy"]
        if (settings.get("operationType") or "COPY") not in ("COPY", "OPERATION_TYPE_UNSPECIFIED"):
            return await stock(project_id, job_id, config, ctx)
        destination = Destination.of(project_id, settings, "WRITE_EMPTY")
        try:
            async with ctx.engine.write_lock():
                copied = _copy(ctx, project_id, settings, destination)
        except JobError as error:
            return failed(project_id, job_id, "COPY", config, error, ctx)
        return done(project_id, job_id, "COPY", config, {"copy": {"copiedRows": str(copied)}}, ctx)

    replace(jobs, "execute_copy_job", copy)


def _copy(ctx: AppContext, project_id: str, settings: dict[str, Any], destination: Destination) -> int:
    """Copy tables, and count the rows. Raises JobError."""
    existing = destinations.find(ctx, destination)
    sources = []
    for names in settings.get("sourceTables") or [settings["sourceTable"]]:
        full = names.get("projectId") or project_id, names["datasetId"], names["tableId"]
        table = destinations.source(ctx, *full)
        if table is None:
            raise JobError("notFound", f"Not found: Table {full[0]}:{full[1]}.{full[2]}")
        by = existing and (existing.time_partitioning or existing.range_partitioning)
        if by and by.field and layout(table) == "none":
            raise JobError(
                "invalid", "Failed to copy Non partitioned table to Column partitioned table: not supported."
            )
        sources.append(table)
    first = tables._table_to_rest(sources[0])
    if existing is None:
        kept = ("timePartitioning", "rangePartitioning", "clustering", "description", "labels")
        properties = {key: first[key] for key in kept if key in first}
        destination = dataclasses.replace(destination, properties=properties)
    planned = existing
    for table in sources:
        fields = tables._table_to_rest(table).get("schema", {}).get("fields", [])
        if planned is None or planned is existing:
            planned = destinations.plan(ctx, destination, existing, fields)
        else:
            destinations.plan(ctx, dataclasses.replace(destination, write="WRITE_APPEND"), planned, fields)
    assert planned is not None
    data = pa.concat_tables([rows.stored(ctx, table) for table in sources], promote_options="default")
    destinations.write(ctx, destination, existing, planned, data)
    return data.num_rows


def extract_to_wildcards() -> None:
    """Defects of extract jobs.

    A `*` in the URI is taken as it is, Avro files lose rows silently, and a missing table answers 500.
    """
    stock = executor.execute_extract_job

    @functools.wraps(stock)
    async def extract(project_id: str, job_id: str, config: dict[str, Any], ctx: AppContext) -> JobMeta:
        settings = config.get("extract", {})
        if str(settings.get("destinationFormat")).upper() == "AVRO":
            raise UnsupportedFeatureError("The local emulator exports no Avro: use PARQUET or JSON.")
        names = settings.get("sourceTable") or {}
        full = names.get("projectId") or project_id, names.get("datasetId", ""), names.get("tableId", "")
        if ctx.catalog.get_table(*full) is None:
            missing = JobError("notFound", f"Not found: Table {full[0]}:{full[1]}.{full[2]}")
            return failed(project_id, job_id, "EXTRACT", config, missing, ctx)
        uris = [uri.replace("*", "0" * 12) for uri in settings.get("destinationUris", [])]
        for uri in uris:
            executor._ensure_parent_dir(executor._resolve_uri(uri, ctx))
        local = {**config, "extract": {**settings, "destinationUris": uris}}
        meta = await stock(project_id, job_id, local, ctx)
        # BigQuery says how many files each URI became.
        statistics = {"extract": {"destinationUriFileCounts": ["1"] * len(uris)}}
        return meta.model_copy(update={"configuration": config, "statistics": statistics})

    replace(jobs, "execute_extract_job", extract)


PATCHES = (
    name_columns_without_alias,
    write_query_destination,
    keep_div_together,
    copy_tables,
    extract_to_wildcards,
)
