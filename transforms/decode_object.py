"""Decodes one JSON message of a spec with fields of several types: the usual one in C, any other by value."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Final

import msgspec

from features import roles
from features.declaration import getter
from features.roles import EPOCH, KEYS, Roles
from features.rows import EXPECTED, is_missing, read_value
from features.times import is_pattern, parse_time, time_text
from features.values import shown
from transforms.decode import (
    EventTime,
    Identifier,
    RejectedError,
    Transaction,
    checked_payload,
    decode_any,
    payload_reason,
)

_TYPES: Final[Mapping[str, Any]] = {
    "number": float | None,
    "boolean": bool | None,
    "category": str | int | bool | None,
    "transaction_id": Identifier | None,
    "account_id": Identifier | None,
    "event_time": EventTime | int | float | None,
    "written_time": str | int | float | None,
    "event_time_derived": bool | None,
}
"""By the type of a field, or the role; a time in a pattern of its own is written_time."""


@functools.lru_cache(maxsize=64)
def object_decoder(
    fields: tuple[tuple[str, str], ...], names: Roles, max_bytes: int
) -> Callable[[bytes], Transaction]:
    """Makes the function that decodes a message to the raw values of fields.

    >>> decode = object_decoder((("amount", "number"), ("shop.country", "category")), Roles(), 65_536)
    >>> decode(b'{"amount": 7, "shop": {"country": "NZ", "city": "x"}, "account_id": "a"}').features
    (7.0, 'NZ')

    Args:
      fields: names, with dots into nested objects, and their types.
      names: the keys of id, account and time. A message without one of them is read by the role's own name.
      max_bytes: the longest payload that is decoded.

    Returns:
      A function that raises as that of `transforms.decode.decoder`. The `features` of its rows are raw
      values, None where they are missing.
    """
    structure = _Structure()
    kinds = {"event_time": "written_time"} if is_pattern(names.time_format) else {}
    own = [structure.add(key, kinds.get(key, key)) for key in (*KEYS, "event_time_derived")]
    renamed = {role: structure.add(name, kinds.get(role, role)) for role, name in names.renamed().items()}
    values = [structure.add(name, kind) for name, kind in fields]
    strict = msgspec.json.Decoder(structure.build()).decode
    get_own, get_renamed, get_values = (
        _tuple_getter(paths) for paths in (own, list(renamed.values()), values)
    )
    read_time = _time_reader(names)
    by_value = _ByValue(fields, names, read_time)

    def decode(payload: bytes) -> Transaction:
        try:
            checked_payload(payload, max_bytes)
            message = strict(payload)
        except msgspec.ValidationError:
            return by_value.read(payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise RejectedError(payload_reason(error)) from None
        row = Transaction(get_values(message), *get_own(message))
        if renamed:
            for role, value in zip(renamed, get_renamed(message), strict=True):
                if value is not None:
                    setattr(row, role, value)
                    if role == "event_time":  # event_time_derived speaks of the key event_time
                        row.event_time_derived = None
        moment = row.event_time
        if moment is not None and type(moment) is not dt.datetime:
            row.event_time = read_time(moment, names.event_time)
        return row

    return decode


class _ByValue:
    """Reads a message that the strict decoder refuses, value by value."""

    def __init__(
        self,
        fields: tuple[tuple[str, str], ...],
        names: Roles,
        read_time: Callable[[Any, str], dt.datetime | None],
    ) -> None:
        self._fields = [(name, kind, getter(name)) for name, kind in fields]
        self._roles = {key: (getattr(names, key), getter(getattr(names, key))) for key in KEYS}
        self._read_time = read_time

    def read(self, payload: bytes) -> Transaction:
        """Returns the transaction.

        Raises:
          RejectedError: the message breaks a rule.
          ArrayError: it is an array of transactions.
        """
        message = decode_any(payload)
        values = []
        for name, kind, get in self._fields:
            value = get(message)
            try:
                values.append(None if is_missing(value) else read_value(kind, value))
            except ValueError:
                raise RejectedError(f"{name}: expected {EXPECTED[kind]}, got {shown(value)}") from None
        derived = message.get("event_time_derived")
        if not (derived is None or isinstance(derived, bool)):
            raise RejectedError(f"event_time_derived: {shown(derived)}, not true or false")
        name, value = self._role(message, "event_time")
        own = name != "event_time"
        return Transaction(
            tuple(values),
            self._identifier(message, "transaction_id"),
            self._identifier(message, "account_id"),
            None if value is None else self._read_time(value, name),
            None if own else derived,
        )

    def _role(self, message: Mapping[str, Any], role: str) -> tuple[str, Any]:
        name, get = self._roles[role]
        value = get(message)
        return (role, message.get(role)) if value is None else (name, value)

    def _identifier(self, message: Mapping[str, Any], role: str) -> str | None:
        name, value = self._role(message, role)
        try:
            return roles.identifier(value)
        except ValueError as error:
            raise RejectedError(f"{name}: {error}") from None


def _time_reader(names: Roles) -> Callable[[Any, str], dt.datetime | None]:
    form = names.time_format

    def read(value: Any, name: str) -> dt.datetime | None:
        try:
            if isinstance(value, str) and not is_pattern(form):  # dead letters have RFC 3339
                return roles.event_time(value)
            return EPOCH + dt.timedelta(microseconds=parse_time(value, form))
        except (ValueError, OverflowError):
            raise RejectedError(f"{name}: expected {time_text(form)}, got {shown(value)}") from None

    return read


class _Structure:
    """Builds the type of a nested message, field by field."""

    def __init__(self) -> None:
        self._types: dict[str, Any] = {}
        self._inner: dict[str, _Structure] = {}
        self._attributes: dict[str, str] = {}

    def add(self, name: str, kind: str) -> str:
        """Adds a field that is not there yet; returns the path of attributes to it."""
        key, _, rest = name.partition(".")
        attribute = self._attributes.setdefault(key, f"field_{len(self._attributes)}")
        if rest:
            return f"{attribute}.{self._inner.setdefault(key, _Structure()).add(rest, kind)}"
        self._types.setdefault(key, _TYPES[kind])
        return attribute

    def build(self) -> Any:
        """Returns the type. All of its fields may be missing."""
        fields: list[Any] = []
        for key, attribute in self._attributes.items():
            if key in self._inner:
                inner = self._inner[key].build()
                fields.append((attribute, inner, msgspec.field(default_factory=inner, name=key)))
            else:
                fields.append((attribute, self._types[key], msgspec.field(default=None, name=key)))
        return msgspec.defstruct("Message", fields, gc=False)


def _tuple_getter(paths: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(paths) > 1:
        return attrgetter(*paths)
    if not paths:
        return lambda message: ()
    get = attrgetter(paths[0])
    return lambda message: (get(message),)
