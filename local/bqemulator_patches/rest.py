"""The REST API: datasets, tables, streaming inserts, access tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bqemulator.api import health
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import datasets, tabledata, tables
from bqemulator.catalog.models import TableMeta
from bqemulator.domain.errors import ResourceRef, ValidationError, resource_not_found
from bqemulator.storage.sql_identifiers import quoted_table_ref
from fastapi import Depends, Query, Request, Response

from local.bqemulator_patches import rows
from local.bqemulator_patches.replace import replace, replace_route
from local.credentials import TOKEN_PATH

T = TypeVar("T")
_LABEL = re.compile(r"labels\.([\w-]+)(?::(\S*))?")


def context(request: Request) -> AppContext:
    """The emulator that serves a request."""
    return request.app.state.context


def _matches(labels: dict[str, str], filter_text: str) -> bool:
    """Tells whether `labels` satisfy a filter such as `labels.kind:temporary labels.owner`."""
    for term in filter_text.split():
        match = _LABEL.fullmatch(term)
        if match is None:
            raise ValidationError(f"Invalid filter term {term!r}; expected labels.KEY or labels.KEY:VALUE")
        key, value = match.groups()
        if key not in labels or (value is not None and labels[key] != value):
            return False
    return True


def paged(items: Sequence[T], size: int, start: int) -> tuple[Sequence[T], dict[str, str]]:
    """One page of a list, and the part of the answer that leads to the next."""
    end = start + size
    return items[start:end], {"nextPageToken": str(end)} if end < len(items) else {}


def filter_datasets_by_label() -> None:
    """Defects of datasets.list.

    It ignores `filter`: who cleans up by label deletes every dataset. It ends after one page.
    """

    def list_datasets(
        project_id: str,
        ctx: AppContext = Depends(context),  # noqa: B008 - FastAPI's way
        max_results: int = Query(default=1000, alias="maxResults"),
        page_token: int = Query(default=0, alias="pageToken"),
        filter_text: str = Query(default="", alias="filter"),
    ) -> dict[str, Any]:
        found = [d for d in ctx.catalog.list_datasets(project_id) if _matches(d.labels or {}, filter_text)]
        page, following = paged(found, max_results, page_token)
        answer = {"kind": "bigquery#datasetList", "totalItems": len(found)} | following
        return answer | {"datasets": [datasets._dataset_to_rest(dataset) for dataset in page]}

    replace_route(datasets.router, "list_datasets", list_datasets)


def report_bad_rows_of_insert_all() -> None:
    """Defects of insertAll, which streaming inserts use.

    A row that does not fit answers HTTP 500, which clients retry for ever; it must be an error of that row.
    A number given for a TIMESTAMP lands in 1970 (seconds are read as microseconds). A null in a REQUIRED
    column and an unknown column are taken silently. A dict for a JSON column answers 500.
    """

    async def insert_all(
        project_id: str,
        dataset_id: str,
        table_id: str,
        request: Request,
    ) -> dict[str, Any]:
        ctx = context(request)
        table = ctx.catalog.get_table(project_id, dataset_id, table_id)
        if table is None:
            raise resource_not_found(ResourceRef("table", project_id, dataset_id, table_id))
        body = await request.json()
        kind = {"kind": "bigquery#tableDataInsertAllResponse"}
        good, errors = rows.convert(
            [row.get("json") or {} for row in body.get("rows", [])],
            table,
            ignore_unknown=bool(body.get("ignoreUnknownValues")),
        )
        if errors and not body.get("skipInvalidRows"):
            # All or nothing: the good rows are reported as "stopped", and nothing is written.
            bad = {error["index"] for error in errors}
            stopped = {"reason": "stopped", "location": "", "debugInfo": "", "message": ""}
            errors += [{"index": i, "errors": [stopped]} for i in range(len(body["rows"])) if i not in bad]
            return kind | {"insertErrors": sorted(errors, key=lambda error: error["index"])}
        if good is not None and good.num_rows:
            async with ctx.engine.write_lock():
                rows.append(ctx, table, good)
        return kind | ({"insertErrors": errors} if errors else {})

    replace_route(tabledata.router, "insert_all", insert_all)


def drop_views() -> None:
    """Defect: tables.delete of a view made by CREATE VIEW answers 500 (DROP TABLE on a view)."""

    async def delete_table(project_id: str, dataset_id: str, table_id: str, request: Request) -> Response:
        ctx = context(request)
        table = ctx.catalog.get_table(project_id, dataset_id, table_id)
        if table is None:
            raise resource_not_found(ResourceRef("table", project_id, dataset_id, table_id))
        if table.table_type == "VIEW":
            schema, name = quoted_table_ref(project_id, dataset_id, table_id).replace('"', "").split(".")
            is_view = ctx.engine.execute(
                "SELECT 1 FROM duckdb_views() WHERE schema_name = ? AND view_name = ?", [schema, name]
            ).fetchone()
            if is_view:
                async with ctx.engine.write_lock():
                    ctx.engine.execute(f'DROP VIEW "{schema}"."{name}"')
        return await stock(project_id, dataset_id, table_id, ctx)

    stock = tables.delete_table
    replace_route(tables.router, "delete_table", delete_table)


def add_columns() -> None:
    """Defect: a column added by tables.patch or tables.update is in the catalog, not in the stored table."""
    stock = tables._rest_to_table_meta

    def rest_to_table_meta(
        project_id: str, dataset_id: str, body: dict[str, Any], clock: Any, existing: TableMeta | None = None
    ) -> TableMeta:
        updated = stock(project_id, dataset_id, body, clock, existing)
        if existing is not None:
            known = {field.name for field in existing.schema_.fields}
            if missing := known - {field.name for field in updated.schema_.fields}:
                raise ValidationError(f"Provided Schema does not match: fields {sorted(missing)} are missing")
        return updated

    def patched(handler: Callable[..., Any]) -> Callable[..., Any]:
        async def update(project_id: str, dataset_id: str, table_id: str, request: Request) -> dict[str, Any]:
            ctx = context(request)
            before = ctx.catalog.get_table(project_id, dataset_id, table_id)
            answer = await handler(project_id, dataset_id, table_id, request, ctx)
            after = ctx.catalog.get_table(project_id, dataset_id, table_id)
            if before is not None and after is not None and before.table_type == "TABLE":
                async with ctx.engine.write_lock():
                    rows.add_columns(ctx, before, after)
            return answer

        return update

    replace(tables, "_rest_to_table_meta", rest_to_table_meta)
    for name in ("patch_table", "update_table"):
        replace_route(tables.router, name, patched(getattr(tables, name)))


def hand_out_tokens() -> None:
    """Not a defect: the token server for the service account that the local stack makes (`credentials`)."""

    def token() -> dict[str, Any]:
        return {"access_token": "local", "token_type": "Bearer", "expires_in": 3600}

    health.router.add_api_route(TOKEN_PATH, token, methods=["POST"])


PATCHES = (
    filter_datasets_by_label,
    report_bad_rows_of_insert_all,
    drop_views,
    add_columns,
    hand_out_tokens,
)
