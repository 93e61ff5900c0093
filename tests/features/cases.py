"""Strategies: feature specs, and transactions of them as objects and as columns."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from features.declaration import FeatureSpec

KEYS = st.sampled_from(
    ["a", "b", "Betrag", "käse", "金額", "x y", "merchant.category", "merchant.mcc", "m.n.o"]
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
TEXTS = st.one_of(st.sampled_from(["fuel", "grocery", "Käse", "", "🛒", "é", "é"]), st.text(max_size=5))
NUMBERS = st.one_of(st.floats(), st.floats(width=32), st.just(1e39), st.just(-3.4028235677973366e38))
WORDS = st.sampled_from(
    ["true", " FALSE", "Ja", "no ", "1", "0", "-1.5e3", "1e39", "7 ", "nan", "inf", "", "x", "1_0", "\u0661"]
)
GERMAN = "%d.%m.%Y %H:%M"
WHOLE = st.integers(-(2**63), 2**63 - 1)
MOMENTS = st.datetimes(dt.datetime(1980, 1, 1), dt.datetime(2090, 1, 1), timezones=st.just(dt.UTC))


@st.composite
def specs(draw: st.DrawFn) -> FeatureSpec:
    """Any spec of fields that may be nested, with one field for each feature, and time features."""
    fields = draw(st.lists(KEYS, min_size=1, max_size=6, unique=True))
    features: list[dict[str, Any]] = []
    for i, field in enumerate(fields):
        kind = draw(st.sampled_from(["number", "boolean", "category"]))
        missing = {
            "number": st.sampled_from(["reject", "median", 0, -2.5]),
            "boolean": st.sampled_from(["reject", "median", True, 0]),
            "category": st.sampled_from(["reject", "own"]),
        }[kind]
        feature = {"name": f"f{i}", "from": field, "kind": kind, "missing": draw(missing)}
        if kind == "category":
            feature["keep"] = draw(st.integers(1, 4))
        features.append(feature)
    for kind in draw(st.lists(st.sampled_from(["time_of_day", "day_of_week"]), unique=True)):
        features.append({"name": kind, "kind": kind, "timezone": draw(ZONES)})
    form = draw(st.sampled_from(["any", "rfc3339", "seconds", "milliseconds", GERMAN]))
    content = {"event_time": {"from": "when", "format": form}, "features": draw(st.permutations(features))}
    return FeatureSpec.from_json(content)


@st.composite
def rows(draw: st.DrawFn, spec: FeatureSpec, least: int = 0) -> tuple[list[dict[str, Any]], pa.Table]:
    """The same transactions as nested objects and as a table."""
    n = draw(st.integers(least, 12))
    objects: list[dict[str, Any]] = [{} for _ in range(n)]
    names, columns = [], []
    for field, value in spec.field_values.items():
        kind, strategy = draw(st.sampled_from(_values(value, spec.roles.time_format)))
        values = draw(st.lists(st.none() | strategy, min_size=n, max_size=n))
        names.append(field)
        columns.append(pa.array(values, kind))
        for row, one in zip(objects, values, strict=True):
            if one is not None or draw(st.booleans()):
                put(row, field, one)
    return objects, pa.Table.from_arrays(columns, names=names) if names else pa.table({})


def put(row: dict[str, Any], field: str, value: Any) -> None:
    """Sets a field of a nested object."""
    *outer, key = field.split(".")
    for name in outer:
        row = row.setdefault(name, {})
    row[key] = value


def _values(value: str, form: str) -> list[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    """The Arrow types that a field may have, each with values of it."""
    moments = MOMENTS.map(lambda moment: moment.timestamp())
    return {
        "number": [(pa.float64(), NUMBERS), (pa.int64(), WHOLE), (pa.string(), WORDS)],
        "boolean": [
            (pa.bool_(), st.booleans()),
            (pa.int64(), st.integers(-1, 2)),
            (pa.float64(), NUMBERS),
            (pa.string(), WORDS),
        ],
        "category": [
            (pa.string(), TEXTS),
            (pa.dictionary(pa.int32(), pa.string()), TEXTS),
            (pa.int64(), WHOLE),
            (pa.bool_(), st.booleans()),
            (pa.float64(), st.one_of(st.integers(0, 9).map(float), NUMBERS)),
        ],
        "time": {
            "any": [
                (
                    pa.string(),
                    MOMENTS.map(lambda m: m.isoformat())
                    | st.sampled_from(["x", "1.5e9", "2026-01-01 00:00:00"]),
                ),
                (pa.int64(), moments.map(int) | WHOLE),
                (pa.float64(), moments | NUMBERS),
                (pa.timestamp("us", tz="UTC"), MOMENTS),
            ],
            "rfc3339": [(pa.string(), st.one_of(MOMENTS.map(lambda m: m.isoformat()), st.text(max_size=3)))],
            GERMAN: [
                (
                    pa.string(),
                    st.one_of(
                        MOMENTS.map(lambda m: m.strftime(GERMAN)),
                        MOMENTS.map(lambda m: m.isoformat()),
                        st.sampled_from(
                            ["1.2.2026 5:03", " 31.12.2026 14:05\n", "31.12.2026", "2026-01-01 10:00"]
                        ),
                        st.text(max_size=3),
                    ),
                )
            ],
            "seconds": [(pa.float64(), moments | NUMBERS), (pa.int64(), moments.map(int) | WHOLE)],
            "milliseconds": [(pa.int64(), moments.map(lambda s: int(s * 1000)) | WHOLE)],
        }[form],
    }[value]
