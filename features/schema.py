"""The JSON schema of an instance: the transactions that a server of a feature spec takes.

OpenAPI, the metadata of the servers and Vertex AI all have it from here. An instance that is valid is scored.
One that is not is refused, but for spellings of numbers that nobody writes, such as 123e20 as text.
"""

from __future__ import annotations

import math
import re
from typing import Any

from features.declaration import Feature, FeatureSpec
from features.kinds import REJECT
from features.roles import EPOCH_LIMIT
from features.times import MOST_SECONDS, is_pattern, time_text
from features.values import BEYOND_FLOAT32, FALSE_WORDS, TRUE_WORDS

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
LARGEST = math.nextafter(BEYOND_FLOAT32, 0)
"""The largest number that is finite when it is rounded to float32."""
MISSING: Json = {"enum": [None, ""]}
"""Stands for a missing value, as does an absent key."""

_B = r"[ \t\n\v\f\r]*"
_NUMBER = (
    r"-?(([0-9]{1,38}(\.[0-9]*)?|\.[0-9]+)([eE]-[0-9]{1,9})?"
    r"|([0-9](\.[0-9]*)?|\.[0-9]+)[eE]\+?([0-2]?[0-9]|3[0-7]))"
)
_YEAR = "[1-8][0-9]{3}"
_LEAP_YEAR = "([1-8][0-9](0[48]|[2468][048]|[13579][26])|(1[26]|[2468][048]|[357][26])00)"
_DAY = (
    f"({_YEAR}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
    f"|{_LEAP_YEAR}-02-29)"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
_OFFSET = "([01][0-9]|2[0-3])"
_MOMENT = f"{_DAY}[Tt ]{_CLOCK}"
_SINCE_1970 = r"[0-9]{1,19}(\.[0-9]+)?|[0-9](\.[0-9]+)?[eE]\+?(0?[0-9]|1[0-8])"
_FIRST_SECOND = -62_135_596_800
"""The beginning of the year 1."""


def instance_schema(spec: FeatureSpec) -> Json:
    """Describes an instance: the list of the values, or an object with them.

    >>> spec = FeatureSpec.from_json({"features": [{"name": "place", "kind": "category"}]})
    >>> [one["type"] for one in instance_schema(spec)["anyOf"]]
    ['array', 'object']
    """
    return {"anyOf": [list_schema(spec), object_schema(spec)]}


def openapi_3_0(spec: FeatureSpec) -> Json:
    """Describes an instance as `instance_schema` does, in the dialect of Vertex AI, which has no tuples."""
    schema = list_schema(spec)
    if "prefixItems" in schema:
        values = schema.pop("prefixItems")
        schema["items"] = {"anyOf": [one for i, one in enumerate(values) if one not in values[:i]]}
    return {"anyOf": [schema, object_schema(spec)]}


def list_schema(spec: FeatureSpec) -> Json:
    """Describes an instance that is the list of the values of `FeatureSpec.fields`."""
    values = [_value(spec, field) for field in spec.fields]
    items = {"items": values[0]} if all(one == values[0] for one in values) else {"prefixItems": values}
    return {
        "type": "array",
        "description": f"The values of {', '.join(spec.fields)}, in this order.",
        **items,
        "minItems": len(values),
        "maxItems": len(values),
    }


def object_schema(spec: FeatureSpec) -> Json:
    """Describes an instance that is an object; a dot in the name of a field enters a nested one."""
    schema: Json = {"type": "object", "properties": {}, "required": []}
    for field in spec.fields:
        *outer, key = field.split(".")
        levels = [schema]
        for name in outer:
            levels.append(levels[-1]["properties"].setdefault(name, {"properties": {}, "required": []}))
        levels[-1]["properties"][key] = _described(spec, field)
        if _is_required(spec, field):
            for level, name in zip(levels, (*outer, key)):  # noqa: B905  Python 3.9
                # Elsewhere a value that is no object is one without keys.
                level["type"] = "object"
                level["required"] = list(dict.fromkeys((*level["required"], name)))
    if "features" not in schema["properties"]:
        # The member of an instance with fields of its own, or with a list of numbers.
        if spec.is_numeric:
            schema["properties"]["features"] = {"not": {"type": "array", "items": {}, "minItems": 1}}
        elif not schema["required"]:
            known = [{"required": [key]} for key in schema["properties"]]
            schema["anyOf"] = [{"not": {"required": ["features"]}}, *known]
    return {**_without_empty(schema), "description": "The values by name; other members are ignored."}


def _without_empty(schema: Json) -> Json:
    """Leaves out `required` where it is empty, which OpenAPI 3.0 refuses."""
    properties = {
        name: _without_empty(one) if "properties" in one else one
        for name, one in schema["properties"].items()
    }
    rest = {key: value for key, value in schema.items() if value != []}
    return {**rest, "properties": properties}


def _features(spec: FeatureSpec, field: str) -> list[Feature]:
    return [feature for feature in spec.features if feature.source == field]


def _is_required(spec: FeatureSpec, field: str) -> bool:
    return any(feature.missing == REJECT for feature in _features(spec, field))


def _described(spec: FeatureSpec, field: str) -> Json:
    features = ", ".join(f"{feature.name} ({feature.kind})" for feature in _features(spec, field))
    value = _value(spec, field)
    return value if spec.is_numeric else {**value, "description": f"For {features}."}


def _value(spec: FeatureSpec, field: str) -> Json:
    """Describes the values of a field."""
    kind = spec.field_values[field]
    forms = _time(spec.roles.time_format) if kind == "time" else _FORMS[kind]
    return {"anyOf": [*forms, *(() if _is_required(spec, field) else (MISSING,))]}


def _text(pattern: str, blanks: str = _B) -> Json:
    return {"type": "string", "pattern": f"^{blanks}({pattern}){blanks}$"}


def _any_case(word: str) -> str:
    return "".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in word)


_FORMS: dict[str, list[Json]] = {
    "number": [{"type": "number", "minimum": -LARGEST, "maximum": LARGEST}, _text(_NUMBER)],
    "boolean": [
        {"type": "boolean"},
        {"enum": [0, 1]},
        _text("|".join(map(_any_case, (*TRUE_WORDS, *FALSE_WORDS)))),
    ],
    "category": [
        {"type": "string", "minLength": 1},
        {"type": "integer"},
        {"type": "boolean"},
    ],
}
"""By the type of a field."""


_DIRECTIVES = {
    "Y": _YEAR,
    "y": "[0-9]{2}",
    "m": "(0?[1-9]|1[0-2])",
    "d": "(0?[1-9]|[12][0-9]|3[01])",
    "H": "([01]?[0-9]|2[0-3])",
    "M": "[0-5]?[0-9]",
    "S": "[0-5]?[0-9]",
    "f": "[0-9]{1,6}",
    "z": f"([Zz]|[+-]{_OFFSET}:?[0-5][0-9])",
    "%": "%",
}
"""Of a pattern for times; others match anything. Days that a month does not have are not told from others."""


def _pattern(form: str) -> str:
    """Writes a pattern for times as a regular expression."""
    text = ""
    for i, part in enumerate(re.split("%(.)", form)):
        text += _DIRECTIVES.get(part, ".+") if i % 2 else re.sub(r"([\\^$.|?*+()\[\]{}])", r"\\\1", part)
    return text


def _time(form: str) -> list[Json]:
    about = {"description": f"{time_text(form)[0].upper()}{time_text(form)[1:]}."}
    if form == "rfc3339":
        return [{**_text(f"{_MOMENT}([Zz]|[+-]{_OFFSET}:[0-5][0-9])", ""), **about}]
    if form == "any":
        offset = f" ?([Zz]|UTC|[+-]{_OFFSET}(:?[0-5][0-9])?)?"
        number = {"type": "number", "minimum": _FIRST_SECOND, "maximum": math.nextafter(EPOCH_LIMIT, 0)}
        return [{**_text(f"{_MOMENT}{offset}|{_SINCE_1970}"), **about}, number]
    if is_pattern(form):
        texts = [_text(_pattern(form)), _text(f"{_MOMENT}([Zz]|[+-]{_OFFSET}:[0-5][0-9])", "")]
        return [{**text, **about} for text in texts]
    most = MOST_SECONDS * (1 if form == "seconds" else 1000)
    return [{"type": "number", "minimum": -most, "maximum": most, **about}]
