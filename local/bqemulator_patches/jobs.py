"""Jobs: where a query writes its result, loads, extracts, SQL."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import jobs, upload
from bqemulator.api.routes.tables import _rest_to_table_meta
from bqemulator.catalog.models import JobMeta, TableMeta
from bqemulator.domain.errors import UnsupportedFeatureError
from bqemulator.jobs import executor
from bqemulator.jobs.executor import JOB_RESULTS, JOB_SCHEMAS
from bqemulator.storage.sql_identifiers import quoted_table_ref
from bqemulator.storage.type_map import bq_schema_to_duckdb_columns
from sqlglot import exp
from sqlglot.parsers.bigquery import BigQueryParser

from local.bqemulator_patches import rows
from local.bqemulator_patches.replace import replace


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
        target = {"projectId": request_project_id} | target
        problem = await _write(ctx, target, query_config, job_id)
        configuration = {"query": query_config | {"destinationTable": target}}
        if problem is None:
            return job_meta.model_copy(update={"configuration": configuration})
        return jobs._failed_job_meta(
            request_project_id, job_id, "QUERY", configuration, problem, ctx.clock.now()
        )

    replace(jobs, "_apply_write_append", write_destination)


async def _write(
    ctx: AppContext, target: dict[str, str], config: dict[str, Any], job_id: str
) -> dict[str, str] | None:
    """Write a query's rows where its configuration says. Returns BigQuery's error, or None."""
    names = target["projectId"], target["datasetId"], target["tableId"]
    label = f"{names[0]}:{names[1]}.{names[2]}"
    disposition = config.get("writeDisposition") or "WRITE_EMPTY"
    if ctx.catalog.get_dataset(*names[:2]) is None:
        return {"reason": "notFound", "message": f"Not found: Dataset {names[0]}:{names[1]}"}
    data, reference = JOB_RESULTS[job_id], quoted_table_ref(*names)
    async with ctx.engine.write_lock():
        table = ctx.catalog.get_table(*names)
        if table is not None and disposition == "WRITE_EMPTY":
            # Counted, because DML leaves the catalog's number of rows as it is.
            count = ctx.engine.execute(f"SELECT count(*) FROM {reference}").fetchone()  # noqa: S608
            if count and count[0]:
                return {"reason": "duplicate", "message": f"Already Exists: Table {label}"}
        if table is not None and disposition == "WRITE_TRUNCATE":
            ctx.engine.execute(f"DROP TABLE {reference}")
            ctx.catalog.delete_table(*names)
            table = None
        if table is None:
            body = {"tableReference": target, "schema": {"fields": JOB_SCHEMAS[job_id]}}
            body |= {key: config[key] for key in ("timePartitioning", "clustering") if config.get(key)}
            table = _rest_to_table_meta(names[0], names[1], body, ctx.clock)
            columns = bq_schema_to_duckdb_columns(JOB_SCHEMAS[job_id])
            definitions = ", ".join(f'"{name}" {kind}' for name, kind in columns)
            ctx.engine.execute(f"CREATE TABLE {reference} ({definitions})")
            ctx.catalog.create_table(table)
        extra = set(data.column_names) - {field.name for field in table.schema_.fields}
        if extra:
            return {
                "reason": "invalid",
                "message": f"Invalid schema update. Cannot add fields {sorted(extra)}",
            }
        rows.append(ctx, table, data)
    return None


def keep_div_together() -> None:
    """Defect: `300 * DIV(x - 1, 300)` is translated to `300 * x - 1 // 300`. DIV gets its parentheses."""
    stock = BigQueryParser.FUNCTIONS["DIV"]
    BigQueryParser.FUNCTIONS["DIV"] = lambda args: exp.Paren(this=stock([exp.paren(arg) for arg in args]))


def load_by_name() -> None:
    """Defects of load jobs.

    An upload by load_table_from_json or load_table_from_file is refused, because the client calls it `*/*`.
    Parquet columns are taken by position instead of by name. JSON rows are read by DuckDB's rules: numbers
    for a TIMESTAMP are misread and nulls in REQUIRED columns are stored.
    """
    permitted, stock = upload._is_permitted_media_type, executor._load_path_into_target

    def load(path: str, job: Any, ctx: AppContext) -> None:
        table = ctx.catalog.get_table(job.project_id, job.dataset_id, job.table_id)
        is_json = job.source_format in ("NEWLINE_DELIMITED_JSON", "JSON")
        if table is None or not (is_json or job.source_format == "PARQUET"):
            stock(path, job, ctx)
        elif is_json:
            ignore = bool(job.raw_config.get("ignoreUnknownValues"))
            rows.append(ctx, table, _read_json(path, table, ignore))
        else:
            rows.append(ctx, table, rows.fit(pq.read_table(path), table))

    replace(upload, "_is_permitted_media_type", lambda kind: kind == "*/*" or permitted(kind))
    replace(executor, "_load_path_into_target", load)


def _read_json(path: str, table: TableMeta, ignore_unknown: bool) -> pa.Table:
    """The rows of a file of JSON lines, gzip or not. One bad row fails the job, as in BigQuery."""
    content = Path(path).read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    source = [orjson.loads(line) for line in content.splitlines() if line.strip()]
    good, errors = rows.convert(source, table, ignore_unknown=ignore_unknown)
    if errors:
        raise ValueError(f"JSON table encountered too many errors, giving up. First: {errors[0]}")
    return rows.arrow_schema(table).empty_table() if good is None else good


def extract_to_wildcards() -> None:
    """Defects of extract jobs: a `*` in the URI is taken as it is, and Avro files lose rows silently."""
    stock = executor.execute_extract_job

    @functools.wraps(stock)
    async def extract(project_id: str, job_id: str, config: dict[str, Any], ctx: AppContext) -> JobMeta:
        settings = config.get("extract", {})
        if str(settings.get("destinationFormat")).upper() == "AVRO":
            raise UnsupportedFeatureError("The local emulator exports no Avro: use PARQUET or JSON.")
        uris = [uri.replace("*", "0" * 12) for uri in settings.get("destinationUris", [])]
        for uri in uris:
            executor._ensure_parent_dir(executor._resolve_uri(uri, ctx))
        local = {**config, "extract": {**settings, "destinationUris": uris}}
        meta = await stock(project_id, job_id, local, ctx)
        # BigQuery says how many files each URI became.
        statistics = {"extract": {"destinationUriFileCounts": ["1"] * len(uris)}}
        return meta.model_copy(update={"configuration": config, "statistics": statistics})

    replace(jobs, "execute_extract_job", extract)


PATCHES = (write_query_destination, keep_div_together, load_by_name, extract_to_wildcards)
