"""Values on their way out of the REST API, in the form that the client asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
from bqemulator.api.routes import jobs, tabledata
from bqemulator.domain.errors import ValidationError
from bqemulator.storage import arrow_bridge
from fastapi import Depends, Request

from local.bqemulator_patches.replace import replace, replace_route

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNSPECIFIED: Final = "TIMESTAMP_OUTPUT_FORMAT_UNSPECIFIED"
_READS: Final = (
    (jobs.router, "query"),
    (jobs.router, "get_query_results"),
    (tabledata.router, "list_tabledata"),
)

# A request is served in a context of its own.
_timestamps: ContextVar[str] = ContextVar("timestamps", default="FLOAT64")


def _wanted(options: Mapping[str, Any]) -> str:
    """The format of timestamps that `formatOptions` ask for."""
    wanted = str(options.get("timestampOutputFormat") or _UNSPECIFIED)
    int64 = str(options.get("useInt64Timestamp")).lower() == "true"
    if wanted not in (_UNSPECIFIED, "FLOAT64", "INT64", "ISO8601_STRING"):
        raise ValidationError(f"Invalid value for timestampOutputFormat: {wanted}")
    if int64 and wanted != _UNSPECIFIED:
        raise ValidationError("Cannot specify both useInt64Timestamp and timestampOutputFormat.")
    if wanted == _UNSPECIFIED:
        return "INT64" if int64 else "FLOAT64"
    return wanted


async def _remember_format(request: Request) -> None:
    prefix = "formatOptions."
    options = {
        key.removeprefix(prefix): value
        for key, value in request.query_params.items()
        if key.startswith(prefix)
    }
    if request.method == "POST":
        options |= (await request.json()).get("formatOptions") or {}
    _timestamps.set(_wanted(options))


def double_text(value: float) -> str:
    """A FLOAT64 as BigQuery writes it, which is Java's way: 1.5, 1.0E20, -Infinity.

    >>> double_text(1767323045.5), double_text(0.0), double_text(1e-4)
    ('1.7673230455E9', '0.0', '1.0E-4')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value)
    mantissa, exponent = f"{Decimal(repr(value)).normalize():E}".split("E")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}E{int(exponent)}"


def _timestamp_text(value: datetime) -> str:
    wanted = _timestamps.get()
    if wanted == "ISO8601_STRING":
        return f"{value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}000000Z"
    micros = (value - _EPOCH) // timedelta(microseconds=1)
    return str(micros) if wanted == "INT64" else double_text(micros / 1_000_000)


def _decimal_text(value: Decimal, kind: Any, field: Any) -> str:
    return f"{value.normalize():f}"


def answer_in_the_format_asked_for() -> None:
    """Defects of jobs.query, jobs.getQueryResults and tabledata.list.

    TIMESTAMP is always in microseconds, which `formatOptions` must ask for; the default is seconds, a float.
    FLOAT64 is in Python's text (inf, 1e+20), NUMERIC with all its zeros (1.500000000, 0E-9).
    """
    stock_timestamp, stock_endpoint = arrow_bridge._fmt_bq_timestamp, arrow_bridge._format_range_endpoint

    def timestamp(value: Any, kind: pa.DataType, field: Any) -> Any:
        return stock_timestamp(value, kind, field) if kind.tz is None else _timestamp_text(value)

    def range_endpoint(value: Any, element: str) -> str:
        if element == "TIMESTAMP" and value is not None:
            return _timestamp_text(value)
        return stock_endpoint(value, element)

    formatters = (
        (pa.types.is_timestamp, timestamp),
        (pa.types.is_floating, lambda value, kind, field: double_text(value)),
        (pa.types.is_decimal, _decimal_text),
    )
    # The first that fits is taken.
    replace(arrow_bridge, "_BQ_TYPE_FORMATTERS", (*formatters, *arrow_bridge._BQ_TYPE_FORMATTERS))
    replace(arrow_bridge, "_format_range_endpoint", range_endpoint)
    for router, name in _READS:
        replace_route(router, name, dependencies=[Depends(_remember_format)])


PATCHES = (answer_in_the_format_asked_for,)
