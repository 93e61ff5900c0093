"""Encodes transactions that are Python objects, one by one: for servers, which have few at a time.

`columns` does the same for Arrow columns, and gives the same numbers and reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from features.declaration import ACCOUNT, Feature, FeatureSpec, getter
from features.kinds import HISTORY, MEDIAN, OWN
from features.learnt import NOTHING, Encoded, Learnt
from features.times import AROUND, parse_time
from features.values import boolean, number, shown

Convert = Callable[[Any], Sequence[float]]

EXPECTED = {
    "number": "a finite number within float32",
    "boolean": "true or false",
    "category": "a text or a whole number",
}
"""By the type of a field: what its values are."""
LARGEST_WHOLE = 2**53
"""A float up to this may stand for a whole number."""


class RowEncoder:
    """Encodes instances: lists of the values of `FeatureSpec.fields`, or objects with these keys.

    >>> spec = FeatureSpec.from_json({"features": [
    ...     {"name": "amount", "kind": "number"}, {"name": "present", "kind": "boolean"}]})
    >>> encoded = RowEncoder(spec).encode([[12.5, True], {"amount": 3, "present": False}, {"amount": 3}])
    >>> encoded.inputs[:2].tolist(), encoded.reasons
    ([[12.5, 1.0], [3.0, 0.0]], {2: 'present: expected true or false, got null'})

    Args:
      spec: the features.
      learnt: from the manifest of the model.

    Raises:
      SpecError: `learnt` lacks a part that `spec` needs.
    """

    def __init__(self, spec: FeatureSpec, learnt: Learnt = NOTHING) -> None:
        learnt.check(spec)
        self._spec = spec
        self._features = [
            (spec.fields.index(feature.source), feature.source, _converter(feature, spec, learnt))
            for feature in spec.features
        ]
        self._getters = [getter(field) for field in spec.fields]

    def encode(self, instances: Sequence[Any]) -> Encoded:
        """Encodes instances; one that breaks a rule has a reason."""
        refused = [math.nan] * len(self._spec.inputs)
        rows, reasons = [], {}
        for i, instance in enumerate(instances):
            try:
                rows.append(self._encode(instance))
            except ValueError as error:
                reasons[i] = str(error)
                rows.append(refused)
        with np.errstate(over="ignore"):
            matrix = np.array(rows, np.float64).reshape(-1, len(refused)).astype(np.float32)
        return Encoded(matrix, reasons)

    def _encode(self, instance: Any) -> list[float]:
        if isinstance(instance, Mapping):
            values: Sequence[Any] = [get(instance) for get in self._getters]
        elif isinstance(instance, (list, tuple)):
            values = instance
            if len(values) != len(self._getters):
                names = ", ".join(self._spec.fields[:8]) + (", ..." if len(self._getters) > 8 else "")
                raise ValueError(
                    f"features: expected {len(self._getters)} values ({names}), got {len(values)}"
                )
        else:
            raise ValueError(f"features: expected a list of values or an object, got {shown(instance)}")
        row: list[float] = []
        for at, source, convert in self._features:
            try:
                row.extend(convert(values[at]))
            except ValueError as error:
                raise ValueError(
                    f"{source}: {error}, got {shown(None if is_missing(values[at]) else values[at])}"
                ) from None
        return row


def expected_of(feature: Feature) -> str:
    """Says what the values of a feature's field are, unless they are times."""
    if feature.kind == HISTORY:
        what = " of ".join(filter(None, (feature.statistic, feature.of)))
        by = feature.by or ACCOUNT
        return (
            f"the {what} over the earlier transactions of the {by}, a number that the pipelines compute and "
            "that who asks a server directly has to send"
        )
    return EXPECTED.get(feature.rules.value, "")


def _converter(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> Convert:
    """Makes the function from a value to the inputs of a feature; its ValueError says what it expected."""
    expected = expected_of(feature)
    if feature.kind == "category":
        rarity = learnt.categories[feature.name]
        known = dict(zip(rarity.values, rarity.rarities))  # noqa: B905  Python 3.9
        missing, other = (rarity.missing,) if feature.missing == OWN else None, rarity.other

        def category(value: Any) -> Sequence[float]:
            return (known.get(text_of(value), other),)

        return _or_missing(category, missing, expected)
    if feature.rules.value == "time":
        around, form, timezone = AROUND[feature.kind], spec.roles.time_format, feature.timezone
        return lambda value: around(parse_time(value, form), timezone)
    filled = learnt.medians[feature.name] if feature.missing == MEDIAN else feature.missing
    default = (filled,) if isinstance(filled, float) else None
    return _or_missing(_boolean if feature.kind == "boolean" else _number, default, expected)


def _or_missing(convert: Convert, default: Sequence[float] | None, expected: str) -> Convert:
    def converted(value: Any) -> Sequence[float]:
        if is_missing(value):
            if default is None:
                raise ValueError(f"expected {expected}")
            return default
        try:
            return convert(value)
        except ValueError:
            raise ValueError(f"expected {expected}") from None

    return converted


def read_value(kind: str, value: Any) -> Any:
    """Reads a value that is there: a float, a boolean or a text.

    >>> read_value("number", "1.5"), read_value("boolean", 1), read_value("category", 5411)
    (1.5, True, '5411')

    Args:
      kind: the type of its field: "number", "boolean" or "category".
      value: as a message has it.

    Raises:
      ValueError: it is no such value.
    """
    if kind == "category":
        return text_of(value)
    (result,) = (_boolean if kind == "boolean" else _number)(value)
    return bool(result) if kind == "boolean" else result


def is_missing(value: Any) -> bool:
    """Tells whether a value stands for none: null, NaN as columns have it, or an empty text as CSV has it."""
    return value is None or value != value or value == ""


def _number(value: Any) -> Sequence[float]:
    try:
        return (number(value),)
    except ValueError:
        raise ValueError(f"expected {EXPECTED['number']}") from None


def _boolean(value: Any) -> Sequence[float]:
    if isinstance(value, str):
        value = boolean(value)
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        raise ValueError(f"expected {EXPECTED['boolean']}")
    return (float(value),)


def text_of(value: Any) -> str:
    """Returns a category's value as text: true and false in JSON's words, whole numbers in digits.

    Raises:
      ValueError: it is neither a text nor a whole number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return shown(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_WHOLE:
        value = int(value)
    if not isinstance(value, int):
        raise ValueError(f"expected {EXPECTED['category']}")
    return str(value)
