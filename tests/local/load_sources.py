"""Schemas of load jobs, written short: tables to read files for, and what was detected."""

import datetime as dt

from bqemulator.catalog.models import TableFieldSchema, TableMeta, TableSchema


def table(fields):
    """A table with `fields`: REST's dicts, or `name:TYPE` and `name:TYPE:MODE` with commas between them."""
    if isinstance(fields, str):
        fields = [
            dict(zip(("name", "type", "mode"), text.split(":"), strict=False)) for text in fields.split(",")
        ]

    def model(field):
        nested = tuple(model(child) for child in field.get("fields", ()))
        return TableFieldSchema(**(field | {"fields": nested}))

    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return TableMeta(
        project_id="p",
        dataset_id="d",
        table_id="t",
        schema=TableSchema(fields=tuple(model(field) for field in fields)),
        creation_time=now,
        last_modified_time=now,
        etag="",
    )


def named(fields):
    return [{"name": field.name} for field in fields.schema_.fields]


def shape(fields):
    """A schema as `name:TYPE`, `name:TYPE[]`, `name{...}`."""

    def one(field):
        kind = f"{{{shape(field['fields'])}}}" if "fields" in field else f":{field['type']}"
        return f"{field['name']}{kind}{'[]' if field['mode'] == 'REPEATED' else ''}"

    return ",".join(one(field) for field in fields)
