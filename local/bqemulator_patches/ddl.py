"""Takes what CREATE TABLE and CREATE VIEW declare into the catalog, for tables.get and tables.list."""

from __future__ import annotations

import re
from typing import Any, Final

import sqlglot
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import tables
from bqemulator.catalog import ddl_sync
from bqemulator.jobs import executor
from bqemulator.scripting import interpreter
from sqlglot import exp
from sqlglot.tokens import TokenType

from local.bqemulator_patches.replace import replace

_CREATE: Final = re.compile(r"\bCREATE\b", re.IGNORECASE)
_OF_A_VIEW: Final = ("description", "labels")
_INGESTION_TIME: Final = ("_PARTITIONTIME", "_PARTITIONDATE")


def keep_what_create_table_declares() -> None:
    """Defects of CREATE TABLE.

    CLUSTER BY, labels and PARTITION BY of an expression, such as DATE(column), are dropped. IF NOT EXISTS has
    the catalog forget what the table that is there was made with.
    """
    stock = ddl_sync.sync_created_table

    def sync(sql: str, project_id: str, ctx: AppContext) -> None:
        statement = _statement(sql)
        target = ddl_sync._detect_plain_create_table(sql) if statement is not None else None
        if statement is None or target is None:
            stock(sql, project_id, ctx)
            return
        names = ddl_sync._split_target(target, project_id)
        if statement.args.get("exists") and ctx.catalog.get_table(*names) is not None:
            return
        stock(sql, project_id, ctx)
        table = ctx.catalog.get_table(*names)
        declared = _declared(statement)
        if table is not None and declared:
            body = {"tableReference": {"tableId": names[2]}} | declared
            ctx.catalog.update_table(tables._rest_to_table_meta(*names[:2], body, ctx.clock, table))

    replace(executor, "sync_created_table", sync)
    replace(interpreter, "sync_created_table", sync)


def keep_what_create_view_declares() -> None:
    """Defects of CREATE VIEW.

    The description and the labels are dropped. BigQuery keeps the query as it was written, and the
    emulator writes it anew.
    """
    stock = ddl_sync.sync_created_view

    def sync(sql: str, project_id: str, ctx: AppContext) -> None:
        stock(sql, project_id, ctx)
        statement = _statement(sql)
        target = ddl_sync._detect_plain_create_view(sql)[0]
        table = ctx.catalog.get_table(*ddl_sync._split_target(target, project_id)) if target else None
        if statement is None or table is None:
            return
        declared = {name: value for name, value in _declared(statement).items() if name in _OF_A_VIEW}
        ctx.catalog.update_table(table.model_copy(update={"view_query": _query(sql), **declared}))

    replace(executor, "sync_created_view", sync)
    replace(interpreter, "sync_created_view", sync)


def _query(sql: str) -> str:
    """Cuts the query, as it stands there, out of a CREATE VIEW."""
    depth = 0
    for token in sqlglot.tokenize(sql, read="bigquery"):
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if token.token_type == TokenType.ALIAS and depth == 0:
            return sql[token.end + 1 :].strip().removesuffix(";").rstrip()
    return sql


def _statement(sql: str) -> exp.Create | None:
    if not _CREATE.search(sql):
        return None
    try:
        statement = sqlglot.parse_one(sql, read="bigquery")
    except sqlglot.errors.SqlglotError:
        return None
    return statement if isinstance(statement, exp.Create) else None


def _declared(statement: exp.Create) -> dict[str, Any]:
    """Returns the declarations of the statement, in the shape of REST."""
    properties = statement.args.get("properties")
    body: dict[str, Any] = {}
    for item in properties.expressions if properties is not None else ():
        if isinstance(item, exp.PartitionedByProperty):
            body |= _partitioning(item.this)
        elif isinstance(item, exp.ClusterProperty):
            body["clustering"] = {"fields": [column.name for column in item.expressions]}
        elif isinstance(item, exp.Property):
            body |= _option(item.name.lower(), item.args["value"])
    expiration = body.pop("expirationMs", None)
    if expiration is not None and "timePartitioning" in body:
        body["timePartitioning"]["expirationMs"] = expiration
    return body


def _option(name: str, value: exp.Expression) -> dict[str, Any]:
    if name == "labels":
        pairs = (pair.expressions for pair in value.expressions)
        return {"labels": {key.name: text.name for key, text in pairs}}
    if name == "description":
        return {"description": value.name}
    if name == "friendly_name":
        return {"friendlyName": value.name}
    if name == "require_partition_filter":
        return {"requirePartitionFilter": bool(value.this)}
    if name == "partition_expiration_days":
        return {"expirationMs": round(float(value.name) * 86_400_000)}
    return {}


def _partitioning(by: exp.Expression) -> dict[str, Any]:
    column = by if isinstance(by, exp.Identifier) else by.find(exp.Column)
    name = column.name if column is not None else ""
    if isinstance(by, exp.RangeBucket):
        series = by.expression
        bounds = {"start": series.args["start"], "end": series.args["end"], "interval": series.args["step"]}
        spec = {key: int(value.sql()) for key, value in bounds.items()}
        return {"rangePartitioning": {"field": name, "range": spec}}
    unit = by.args.get("unit")
    field = {} if name.upper() in _INGESTION_TIME else {"field": name}
    return {"timePartitioning": {"type": unit.name.upper() if unit is not None else "DAY"} | field}


PATCHES = (keep_what_create_table_declares, keep_what_create_view_declares)
