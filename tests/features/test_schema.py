"""The JSON schema of an instance says what the encoder takes, whatever the spec."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from features.declaration import FeatureSpec, getter
from features.default import ULB
from features.learning import learn
from features.rows import RowEncoder
from features.schema import LARGEST, instance_schema, list_schema, object_schema, openapi_3_0
from tests.features.cases import GERMAN, put, rows, specs

JUNK = st.sampled_from(
    [
        None,
        "",
        "x",
        " ",
        True,
        0,
        1,
        2,
        -3.5,
        1e39,
        LARGEST,
        [],
        [1],
        {},
        {"a": 1},
        "true",
        "1e37",
        "2026-02-30",
    ]
)


def is_outlandish(value: Any) -> bool:
    """Names values that a server takes, and the schema does not promise."""
    if isinstance(value, dict | list):
        return any(map(is_outlandish, value.values() if isinstance(value, dict) else value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Whole numbers that a float cannot hold, and times before the year 1 in another unit.
    return is_number and (abs(value) >= 2**53 or value < -62_135_596_800)


@given(st.data())
def test_what_is_valid_is_encoded_and_nothing_else(data):
    spec = data.draw(specs())
    objects, table = data.draw(rows(spec, least=1))
    encoder = RowEncoder(spec, learn(spec, table))
    for field in data.draw(st.lists(st.sampled_from(spec.fields), max_size=2)):
        put(objects[0], field, data.draw(JUNK))
    objects = orjson.loads(orjson.dumps(objects))  # as a request has them: without NaN and dates
    assume(not is_outlandish(objects))
    schema = instance_schema(spec)
    Draft202012Validator.check_schema(schema)
    getters = [getter(field) for field in spec.fields]
    lists = [[get(row) for get in getters] for row in objects]
    for instances in (objects, lists, [lists[0] * 2, {"x": 1}, lists[0][:-1], 5, None]):
        encoded = encoder.encode(instances)
        for i, instance in enumerate(instances):
            valid = Draft202012Validator(schema).is_valid(instance)
            assert valid == (i not in encoded.reasons), (instance, encoded.reasons.get(i))
            if valid:
                assert Draft202012Validator(openapi_3_0(spec)).is_valid(instance)


OPENAPI_3_0 = {
    *("type", "properties", "required", "items", "anyOf", "not", "enum", "description", "pattern"),
    *("minimum", "maximum", "minItems", "maxItems", "minLength"),
}
"""Keywords of a Schema Object of OpenAPI 3.0.2 that say there the same as in JSON Schema."""


@given(st.data())
def test_the_dialect_of_vertex_has_the_keywords_of_openapi_3_0_alone(data):
    def check(schema: dict[str, Any]) -> None:
        assert set(schema) <= OPENAPI_3_0
        assert isinstance(schema.get("type", ""), str)
        assert schema.get("required") != []
        assert schema.get("type") != "array" or isinstance(schema["items"], dict)
        below = [schema[key] for key in ("items", "not") if key in schema]
        for one in (*below, *schema.get("anyOf", ()), *schema.get("properties", {}).values()):
            check(one)

    check(openapi_3_0(data.draw(specs())))


def spec_of(kind: str, form: str = "any", **more: Any) -> FeatureSpec:
    name = {"time": "time_of_day"}.get(kind, kind)
    return FeatureSpec.from_json(
        {"event_time": {"from": "t", "format": form}, "features": [{"name": "f", "kind": name, **more}]}
    )


MOMENTS = ["2024-02-29T00:00:00Z", "2000-02-29T23:59:59.123456Z", "2026-12-31T00:00:00+14:00"]
NO_MOMENTS = [
    *("2026-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2026-04-31T00:00:00Z", "2026-13-01T00:00:00Z"),
    *("2026-01-01T24:00:00Z", "2026-01-01T00:00:60Z", "2026-01-01", "yesterday", "", None, True, []),
]


GERMAN_MOMENTS = ["31.12.2026 14:05", " 1.2.2026 5:03"]
NO_GERMAN_MOMENTS = [
    "31.12.2026",
    "32.12.2026 14:05",
    "31.13.2026 14:05",
    "31.12.2026 24:05",
    "1767225600",
    "x",
]
NUMBERS = [0, -1.5, LARGEST, "1.5", " 7\n", "-1e37", ".5", "1.e-400"]
TIMES = [*MOMENTS, "2026-01-01 10:00:00", "1767225600", "1.7e9", 1767225600, 1.7e12, -86400.5]


@pytest.mark.parametrize(
    ("spec", "valid", "invalid"),
    [
        (spec_of("number"), NUMBERS, ["", None, True, "x", "1e39", 1e39, "99e37", "9" * 39]),
        (spec_of("number", missing=0), [None, "", 3], [True, []]),
        (spec_of("boolean"), [True, 0, 1.0, "TRUE", " nein", "1", "Yes"], [2, "maybe", None, ""]),
        (spec_of("boolean", missing=True), [None, ""], [2]),
        (spec_of("category"), ["é", "料理", 5411, 3.0, False, " "], ["", None, 1.5, [], {}]),
        (spec_of("category", missing="own"), ["", None], [1.5]),
        (spec_of("time"), TIMES, [*NO_MOMENTS, 1e20]),
        (spec_of("time", "rfc3339"), MOMENTS, [*NO_MOMENTS, "2026-01-01 10:00:00", 1767225600]),
        (spec_of("time", "seconds"), [0, 1.5, -1, 253402300799], [253402300800, "1767225600", None, True]),
        (spec_of("time", "milliseconds"), [253402300799000], [253402300799001]),
        (spec_of("time", GERMAN), [*MOMENTS, *GERMAN_MOMENTS], [*NO_MOMENTS, *NO_GERMAN_MOMENTS, 1767225600]),
    ],
)
def test_values(spec, valid, invalid):
    table = pa.table({"f": pa.array(["a"]), "t": pa.array(["2026-01-01T00:00:00Z"])})
    table = table if spec.features[0].kind == "category" else table.slice(0, 0)
    encoder = RowEncoder(spec, learn(spec, table))
    validator = Draft202012Validator(instance_schema(spec))
    for value in (*valid, *invalid):
        expected = value in valid and type(value) in map(type, valid)
        assert validator.is_valid([value]) == (not encoder.encode([[value]]).reasons) == expected, value


def test_an_object_of_nested_fields_needs_what_the_spec_needs():
    spec = FeatureSpec.from_json(
        {
            "features": [
                {"name": "mcc", "from": "merchant.mcc", "kind": "category"},
                {"name": "age", "from": "card.age", "kind": "number", "missing": "median"},
            ]
        }
    )
    schema = object_schema(spec)
    assert schema["required"] == ["merchant"]
    assert schema["properties"]["merchant"]["required"] == ["mcc"]
    assert schema["properties"]["merchant"]["type"] == "object"
    assert schema["properties"]["merchant"]["properties"]["mcc"]["description"] == "For mcc (category)."
    assert {"enum": [None, ""]} in schema["properties"]["card"]["properties"]["age"]["anyOf"]


def test_the_instance_of_ulb_is_30_numbers():
    schema = list_schema(ULB)
    assert (schema["minItems"], schema["maxItems"]) == (30, 30)
    assert schema["items"]["anyOf"][0]["type"] == "number"
    assert object_schema(ULB)["required"] == list(ULB.names)
