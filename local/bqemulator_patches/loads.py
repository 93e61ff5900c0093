"""Load jobs: from gs://, and from files that a client uploads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import duckdb
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import jobs, tables, upload
from bqemulator.catalog.models import JobMeta, TableMeta
from bqemulator.domain.errors import AlreadyExistsError, UnsupportedFeatureError, ValidationError
from bqemulator.jobs import executor
from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse

from local.bqemulator_patches import destinations
from local.bqemulator_patches.destinations import Destination
from local.bqemulator_patches.failures import JobError, done, failed
from local.bqemulator_patches.load_csv import Csv
from local.bqemulator_patches.load_files import Fields, JsonLines, Source
from local.bqemulator_patches.load_parquet import Parquet
from local.bqemulator_patches.replace import replace, replace_route
from local.bqemulator_patches.rest import context

_SOURCES: Final[dict[str, type[Source]]] = {
    "CSV": Csv,
    "NEWLINE_DELIMITED_JSON": JsonLines,
    "PARQUET": Parquet,
}
# Options that change what a job does, and that are not known here.
_REFUSED: Final = (
    "columnNameCharacterMap",
    "dateFormat",
    "datetimeFormat",
    "decimalTargetTypes",
    "fileSetSpecType",
    "hivePartitioningOptions",
    "jsonExtension",
    "referenceFileSchemaUri",
    "sourceColumnMatch",
    "timeFormat",
    "timestampFormat",
)


def load_as_bigquery() -> None:
    """Defects of load jobs.

    A table that does not exist is made in one case of many; otherwise the job fails with a text of DuckDB's.
    Columns of Parquet are taken by position, options of CSV are ignored, and JSON is read by DuckDB's rules:
    numbers for a TIMESTAMP are misread and nulls in REQUIRED columns are stored. A job that fails leaves a
    part of its work. An upload loses the id of its job, and is refused as `*/*`, which is the client's word.
    """
    permitted, envelope = upload._is_permitted_media_type, upload._load_configuration_from_envelope

    async def load(project_id: str, job_id: str, config: dict[str, Any], ctx: AppContext) -> JobMeta:
        return await _load(project_id, job_id, config, ctx, None)

    def configuration_of(body: dict[str, Any]) -> dict[str, Any]:
        # The job's id travels with its configuration: the stock code carries nothing else to `run_upload`.
        return envelope(body) | {"jobReference": body.get("jobReference") or {}}

    async def run_upload(
        *, project_id: str, configuration: dict[str, Any], media_path: str, ctx: AppContext
    ) -> tuple[str, JobMeta]:
        config = dict(configuration)
        job_id = config.pop("jobReference", {}).get("jobId") or f"bqemu_{uuid4().hex[:12]}"
        meta = await _load(project_id, job_id, config, ctx, [Path(media_path)])
        ctx.catalog.upsert_job(meta)
        return job_id, meta

    replace(jobs, "_handle_load_job_with_async_envelope", load)
    replace(upload, "_is_permitted_media_type", lambda kind: kind == "*/*" or permitted(kind))
    replace(upload, "_load_configuration_from_envelope", configuration_of)
    replace(upload, "_run_load", run_upload)


async def _load(
    project_id: str, job_id: str, config: dict[str, Any], ctx: AppContext, uploaded: Sequence[Path] | None
) -> JobMeta:
    if ctx.catalog.get_job(project_id, job_id) is not None:
        raise AlreadyExistsError(f"Already Exists: Job {project_id}:US.{job_id}")
    settings = config["load"]
    destination = Destination.of(project_id, settings, "WRITE_APPEND")
    reader = _reader(settings)
    try:
        files = uploaded or [path for uri in settings.get("sourceUris") or () for path in _files(uri, ctx)]
        if not files:
            raise ValidationError("Required parameter is missing: sourceUris")
        async with ctx.engine.write_lock():
            # In a thread of its own: queries are answered meanwhile.
            statistics = await asyncio.to_thread(_run, ctx, destination, reader(files, settings), settings)
    except (JobError, duckdb.Error) as error:
        return failed(project_id, job_id, "LOAD", config, error, ctx)
    return done(project_id, job_id, "LOAD", config, {"load": statistics}, ctx)


def _reader(settings: dict[str, Any]) -> type[Source]:
    name = (settings.get("sourceFormat") or "CSV").upper()
    if name not in _SOURCES:
        raise UnsupportedFeatureError(f"The local BigQuery loads {', '.join(_SOURCES)}: got {name}.")
    if unknown := [option for option in _REFUSED if settings.get(option)]:
        raise UnsupportedFeatureError(f"The local BigQuery does not know the load option {unknown[0]}.")
    return _SOURCES[name]


def _run(
    ctx: AppContext, destination: Destination, source: Source, settings: dict[str, Any]
) -> dict[str, str]:
    """Load files, and tell the statistics of the job. Raises JobError; nothing is written then."""
    existing = destinations.find(ctx, destination)
    fields = _schema(destination, source, settings, existing)
    planned = destinations.plan(ctx, destination, existing, fields)
    loaded = source.read(planned, fields)
    destinations.write(ctx, destination, existing, planned, loaded.data)
    return {
        "inputFiles": str(len(source.files)),
        "inputFileBytes": str(sum(path.stat().st_size for path in source.files)),
        "outputRows": str(loaded.data.num_rows),
        "badRecords": str(loaded.bad),
    }


def _schema(
    destination: Destination, source: Source, settings: dict[str, Any], existing: TableMeta | None
) -> Fields:
    """The schema that a job goes by: its own, the files', a detected one, or the table's."""
    declared: Fields = (settings.get("schema") or {}).get("fields") or []
    if declared:
        return declared
    known: Fields = [tables._field_to_rest(field) for field in existing.schema_.fields] if existing else []
    if isinstance(source, Parquet):
        return source.schema()
    if settings.get("autodetect"):
        detected = source.schema()
        if not detected and not known:
            raise JobError("invalid", "Schema has no fields.")
        if destination.sets_schema(existing):
            return detected
        # Of a column that the table has, detection gives the position alone.
        by_name = {field["name"].lower(): field for field in known}
        return [by_name.get(field["name"].lower(), field) for field in detected]
    if not known:
        raise ValidationError("No schema specified on job or table.")
    return known


def _files(uri: str, ctx: AppContext) -> list[Path]:
    """The files that a URI names; one `*` stands for any text. Raises JobError where there is none."""
    if not uri.startswith("gs://"):
        raise ValidationError(f"Source URI must be a Google Cloud Storage location: {uri}")
    before, star, after = uri.partition("*")
    start = Path(executor._resolve_uri(before.rpartition("/")[0] + "/" if star else uri, ctx))
    if star:
        prefix = str(Path(executor._resolve_uri(before, ctx)))
        found = sorted(
            path for path in start.rglob("*") if str(path).startswith(prefix) and str(path).endswith(after)
        )
        files = [path for path in found if path.is_file()]
    else:
        files = [start] if start.is_file() else []
    if not files:
        raise JobError("notFound", f"Not found: URI {uri}")
    return files


def explain_missing_storage() -> None:
    """Defect: without a directory for gs://, the message speaks of a variable of bqemulator."""
    stock = executor._resolve_uri

    def resolve(uri: str, ctx: AppContext) -> str:
        if uri.startswith("gs://") and ctx.settings.gcs_local_root is None:
            raise ValidationError(
                f"{uri}: the local BigQuery has no Cloud Storage. Start it with a directory that stands for "
                "gs://: `anomaly local up --gcs_root=DIRECTORY`, or upload the file."
            )
        return stock(uri, ctx)

    replace(executor, "_resolve_uri", resolve)


def take_empty_uploads() -> None:
    """Defect: the upload of an empty file never ends, because `bytes */0` is taken for a question."""
    stock = upload.upload_chunk

    async def upload_chunk(
        project_id: str, request: Request, upload_id: str = Query(default="", alias="upload_id")
    ) -> Response:
        ctx = context(request)
        if request.headers.get("content-range") != "bytes */0":
            return await stock(project_id, request, ctx, upload_id)
        manager = upload._coerce_manager(ctx)
        session = manager.get(upload_id)
        session.staging_path.touch()
        try:
            job_id, meta = await upload._run_load(
                project_id=project_id,
                configuration=session.configuration,
                media_path=str(session.staging_path),
                ctx=ctx,
            )
        finally:
            manager.remove(upload_id)
        return JSONResponse(jobs._build_job_response(project_id, job_id, meta, meta.configuration))

    replace_route(upload.router, "upload_chunk", upload_chunk)


PATCHES = (load_as_bigquery, take_empty_uploads, explain_missing_storage)
