"""Reads the numbers of a transaction as people send them, in messages, files, tables and requests.

It stands alone, because the TorchServe archive also carries it: Python 3.8, and no other package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NUMBER = r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
"""A number as text, once blanks around it are removed. BigQuery's JSON, CSV and many exports write it so."""
BLANKS = " \t\n\v\f\r"
BEYOND_FLOAT32 = 2.0**128 - 2.0**103
"""The smallest positive number that rounds to infinity in float32."""

TRUE_WORDS = ("true", "1", "yes", "y", "ja", "j", "wahr", "oui", "vrai", "si")
"""Texts that stand for true, in any case, as spreadsheets of several languages export it."""
FALSE_WORDS = ("false", "0", "no", "n", "nein", "falsch", "non", "faux", "falso")

_NUMBER = re.compile(NUMBER)
_NUMBERS = frozenset((int, float))
_SHOWN_KEYS = 12
_SHOWN_MISSING = 5
_KEY_CHARACTERS = 40


class FeatureError(ValueError):
    """A transaction lacks features, or has one that is no number.

    Attributes:
      feature: name of the feature at fault; "" where all are.
      reason: the rule that it breaks.
    """

    def __init__(self, feature: str, reason: str) -> None:
        super().__init__(f"{feature} {reason}" if feature else reason)
        self.feature = feature
        self.reason = reason


def number(value: Any) -> float:
    """Reads a number, or a text that holds one; booleans are no numbers.

    >>> number("-1.5e3"), number(7)
    (-1500.0, 7.0)

    Raises:
      ValueError: it is none, or too large for a float32.
    """
    kind = type(value)
    if kind is str and _NUMBER.fullmatch(value.strip(BLANKS)):
        result = float(value)
    elif kind is int or kind is float:
        try:
            result = float(value)
        except OverflowError:
            result = float("inf")
    else:
        raise ValueError(f"{shown(value)}, not a finite float32")
    if not -BEYOND_FLOAT32 < result < BEYOND_FLOAT32:
        raise ValueError(f"{shown(value)}, not a finite float32")
    return result


def boolean(text: str) -> bool:
    """Reads a text that stands for true or false.

    >>> boolean(" Ja "), boolean("FALSE")
    (True, False)

    Raises:
      ValueError: it is no such word.
    """
    word = text.strip(BLANKS).lower()
    if word in TRUE_WORDS or word in FALSE_WORDS:
        return word in TRUE_WORDS
    raise ValueError(f"expected one of {', '.join((*TRUE_WORDS, *FALSE_WORDS))}")


def shown(value: Any) -> str:
    """Names a value in a reason. A text is not repeated: reasons also go to logs, where no payload belongs.

    >>> shown(None), shown(True), shown("4532-..."), shown(1e39), shown(b"\\xfc")
    ('null', 'true', 'a text', '1e+39', 'bytes that are not UTF-8')
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        text = repr(value) if isinstance(value, float) or abs(value) < 10**40 else "an integer of many digits"
        return text
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return "bytes that are not UTF-8"
    kinds: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def features(transaction: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    """Reads the features of a transaction: its list `features`, otherwise the keys of these names.

    A `features` that is no list, or an empty one, counts as absent.

    >>> features({"features": None, "a": "1.5", "b": 2}, ["a", "b"])
    [1.5, 2.0]

    Raises:
      FeatureError: one is missing, or no number.
    """
    given = transaction.get("features")
    if isinstance(given, list) and given:
        return numbers(given, names)
    missing = [name for name in names if name not in transaction]
    if missing:
        absent = "absent" if "features" not in transaction else f"no list of {len(names)} numbers"
        listed = _listed(missing, _SHOWN_MISSING)
        raise FeatureError(
            "", f"{absent}, and as named keys incomplete: {listed} missing; {_keys(transaction)}"
        )
    return numbers([transaction[name] for name in names], names)


def numbers(values: Sequence[Any], names: Sequence[str]) -> list[float]:
    """Reads the numbers of a list, one for each name.

    Raises:
      FeatureError: it has another length, or one is no number.
    """
    if len(values) != len(names):
        raise FeatureError("", f"{len(values)} values, not {len(names)}")
    if set(map(type, values)) <= _NUMBERS and -BEYOND_FLOAT32 < min(values) <= max(values) < BEYOND_FLOAT32:
        return list(map(float, values))  # the usual case, without a look at each
    result = []
    for i, value in enumerate(values):
        try:
            result.append(number(value))
        except ValueError as error:
            raise FeatureError(names[i], f"is {error}") from None
    return result


def _keys(transaction: Mapping[str, Any]) -> str:
    keys = [str(key)[:_KEY_CHARACTERS] for key in transaction]
    return f"the keys are {_listed(keys, _SHOWN_KEYS)}" if keys else "there are no keys"


def _listed(names: Sequence[str], most: int) -> str:
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text
