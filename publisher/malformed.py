"""The kinds of malformed message that can be published: one entry in KINDS each.

A malformed message is made from a good one. It travels with the message attribute `malformed_kind`, for
checking afterwards. No payload holds a line break, so that each stays one line of a JSON lines file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from common.limits import MAX_MESSAGE_BYTES

Document = dict[str, Any]
Make = Callable[[Document, np.random.Generator], bytes]
"""From a message, which it may change, and a source of chance to a payload."""

OVERSIZE_BYTES: Final = MAX_MESSAGE_BYTES + 1024
"""Just over the limit of the parser."""
NESTING: Final = 20_000
"""Levels of a nested bomb; the payload stays within the size limit."""

ANCIENT_TIME: Final = "1999-12-31T23:59:59.000Z"
FUTURE_TIME: Final = "2999-12-31T23:59:59.000Z"
BAD_TIMES: Final = ("yesterday", "2026-02-30T12:00:00Z", "2026-01-31", "31/01/2026 12:00", "")


@dataclass(frozen=True)
class MalformedKind:
    """One kind of malformed message.

    Attributes:
      name: as in the attribute `malformed_kind`.
      description: one line.
      make: makes the payload.
      has_id: the payload can still be read as a JSON object with a `transaction_id` of text.
      has_time: the message keeps its `event_time` attribute.
      form: the form whose messages alone it fits; None fits every form.
    """

    name: str
    description: str
    make: Make
    has_id: bool = True
    has_time: bool = True
    form: str | None = None


def _not_json(document: Document, rng: np.random.Generator) -> bytes:
    return f"transaction {document['transaction_id']} of {_amount(document)} approved".encode()


def _truncated_json(document: Document, rng: np.random.Generator) -> bytes:
    payload = orjson.dumps(document)
    return payload[: int(rng.integers(1, len(payload)))]


def _wrong_utf8(document: Document, rng: np.random.Generator) -> bytes:
    # "Caf\xe9" as Latin-1 has it is no UTF-8.
    name = "Caf@ de la Gare"
    merchant = document["merchant"]
    document["merchant"] = merchant | {"name": name} if isinstance(merchant, dict) else name
    marked = orjson.dumps(document)
    return marked.replace(b"Caf@", b"Caf\xe9", 1)


def _empty(document: Document, rng: np.random.Generator) -> bytes:
    return b""


def _wrong_type_root(document: Document, rng: np.random.Generator) -> bytes:
    # An array with an object in it, such as the merchant, would be an array of transactions.
    every = document.get("features") or [each for each in document.values() if not isinstance(each, dict)]
    roots = (every, _amount(document), document["transaction_id"], None, True)
    return orjson.dumps(roots[int(rng.integers(len(roots)))])


def _no_features(document: Document, rng: np.random.Generator) -> bytes:
    del document["features"]
    return orjson.dumps(document)


def _missing_feature(document: Document, rng: np.random.Generator) -> bytes:
    del document["features"][int(rng.integers(len(document["features"])))]
    return orjson.dumps(document)


def _extra_feature(document: Document, rng: np.random.Generator) -> bytes:
    document["features"].append(0.0)
    return orjson.dumps(document)


def _no_amount(document: Document, rng: np.random.Generator) -> bytes:
    del document["amount"]
    return orjson.dumps(document)


def _flat_merchant(document: Document, rng: np.random.Generator) -> bytes:
    document["merchant"] = document["merchant"]["name"]
    return orjson.dumps(document)


def _amount(document: Document) -> float:
    amount: float = document["features"][-1] if "features" in document else document["amount"]
    return amount


def _any_number(document: Document, rng: np.random.Generator) -> tuple[Any, Any]:
    """The object that holds a number of the message, and its place in it."""
    features = document.get("features")
    return (document, "amount") if features is None else (features, int(rng.integers(len(features))))


def _with_literal(document: Document, literal: bytes, rng: np.random.Generator) -> bytes:
    """The message with one number replaced by `literal`, which need not be JSON."""
    holder, place = _any_number(document, rng)
    holder[place] = orjson.Fragment(literal)
    return orjson.dumps(document)


def _literal(*literals: bytes) -> Make:
    def make(document: Document, rng: np.random.Generator) -> bytes:
        return _with_literal(document, literals[int(rng.integers(len(literals)))], rng)

    return make


def _string_number(document: Document, rng: np.random.Generator) -> bytes:
    holder, place = _any_number(document, rng)
    holder[place] = f"{holder[place]} EUR"
    return orjson.dumps(document)


def _nested_bomb(document: Document, rng: np.random.Generator) -> bytes:
    return _with_literal(document, b"[" * NESTING + b"]" * NESTING, rng)


def _oversize(document: Document, rng: np.random.Generator) -> bytes:
    return orjson.dumps(document | {"comment": "x" * OVERSIZE_BYTES})


def _time(*times: str) -> Make:
    def make(document: Document, rng: np.random.Generator) -> bytes:
        document["event_time"] = times[int(rng.integers(len(times)))]
        return orjson.dumps(document)

    return make


def _wrong_type_id(document: Document, rng: np.random.Generator) -> bytes:
    document["transaction_id"] = int(rng.integers(1, 2**50)) + 0.5
    return orjson.dumps(document)


KINDS: Final[dict[str, MalformedKind]] = {
    kind.name: kind
    for kind in (
        MalformedKind("not_json", "a line of a log", _not_json, has_id=False),
        MalformedKind("truncated_json", "cut off anywhere", _truncated_json, has_id=False),
        MalformedKind("wrong_utf8", "Latin-1 in the merchant's name", _wrong_utf8, has_id=False),
        MalformedKind("empty", "no bytes at all", _empty, has_id=False),
        MalformedKind(
            "wrong_type_root", "a list, number, text, null or true", _wrong_type_root, has_id=False
        ),
        MalformedKind("no_features", "the field features is absent", _no_features, form="ulb"),
        MalformedKind("missing_feature", "29 features", _missing_feature, form="ulb"),
        MalformedKind("extra_feature", "31 features", _extra_feature, form="ulb"),
        MalformedKind("no_amount", "the field amount is absent", _no_amount, form="card"),
        MalformedKind(
            "flat_merchant", "the merchant is a text in place of an object", _flat_merchant, form="card"
        ),
        MalformedKind("nan_literal", "NaN for a feature, which is not JSON", _literal(b"NaN")),
        MalformedKind(
            "infinite", "1e999, or a number over the range of float32", _literal(b"1e999", b"-1e999", b"1e39")
        ),
        MalformedKind("boolean_feature", "true or false for a feature", _literal(b"true", b"false")),
        MalformedKind("string_number", "a feature as a text that is no number", _string_number),
        MalformedKind("null_feature", "null for a feature", _literal(b"null")),
        MalformedKind("nested_bomb", f"{NESTING:,} lists in one another", _nested_bomb, has_id=False),
        MalformedKind("oversize", "longer than the parser takes", _oversize),
        MalformedKind("wrong_type_id", "the transaction id is a fraction", _wrong_type_id, has_id=False),
        MalformedKind("bad_event_time", "no time, or a day alone", _time(*BAD_TIMES), has_time=False),
        MalformedKind("future_event_time", "in the year 2999", _time(FUTURE_TIME), has_time=False),
        MalformedKind("ancient_event_time", "in the year 1999", _time(ANCIENT_TIME), has_time=False),
    )
}
"""Kinds that change `event_time` leave out the attribute of that name: a source that reads event times from
the attribute would fail on it before the message reaches the parser."""


def fitting(form: str) -> tuple[str, ...]:
    """Names the kinds that fit the messages of a form; a feature is one of their numbers."""
    return tuple(kind.name for kind in KINDS.values() if kind.form in (None, form))
