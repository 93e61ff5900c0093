"""Decodes one JSON message: the usual one in C, any other value by value. No Beam here."""

from __future__ import annotations

import datetime as dt
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec

from features import roles, values
from features.roles import MAX_ID_LENGTH, Roles
from features.values import FeatureError, shown

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""A reader of files cuts a line here: a line of this length may have been longer. Pub/Sub allows less."""

_MOST_DIGITS: Final = 1_000
"""Python makes no integers of some thousand digits; no feature, id or time has as many."""

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
EventTime = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class RejectedError(ValueError):
    """A message breaks a rule; the text is the reason."""


class ArrayError(Exception):
    """A message is an array of transactions."""


class Transaction(msgspec.Struct, gc=False):
    """A decoded message.

    Attributes:
      features: the numbers, or the raw values of other fields; not the numbers where a Block has them.
      event_time: also as a text, of a message that is decoded with others.
    """

    features: Any
    transaction_id: str | None = None
    account_id: str | None = None
    event_time: dt.datetime | str | None = None
    event_time_derived: bool | None = None


_DECODE_ANY = msgspec.json.Decoder().decode


@functools.lru_cache(maxsize=64)
def decoder(features: tuple[str, ...], names: Roles, max_bytes: int) -> Callable[[bytes], Transaction]:
    """Makes the function that decodes a message.

    >>> decode = decoder(("amount", "risk"), Roles(), 65_536)
    >>> decode(b'{"account_id": 7, "features": [12.5, 0.5]}').account_id
    '7'

    Args:
      features: names of the numbers in a list, or of their keys.
      names: the keys of id, account and time.
      max_bytes: the longest payload that is decoded.

    Returns:
      A function that raises RejectedError for a message that breaks a rule, and ArrayError for an array of
      transactions.
    """
    length = msgspec.Meta(min_length=len(features), max_length=len(features))
    strict = usual_decoder(Annotated[list[float], length], names, default=msgspec.UNSET)
    keys = [(f"field_{i}", float, msgspec.field(name=name)) for i, name in enumerate(features)]
    decode_named = msgspec.json.Decoder(msgspec.defstruct("Named", keys, gc=False)).decode

    def decode(payload: bytes) -> Transaction:
        try:
            if len(payload) > max_bytes or not payload.isascii():
                checked_payload(payload, max_bytes)
            row = strict(payload)
            if row.features is msgspec.UNSET:
                row.features = msgspec.structs.astuple(decode_named(payload))
            return row
        except msgspec.ValidationError:
            return _read(payload, features, names)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise RejectedError(payload_reason(error)) from None

    return decode


def checked_payload(payload: bytes, max_bytes: int) -> None:
    """Checks what a decoder does not.

    Raises:
      RejectedError: the payload is too long.
      UnicodeDecodeError: it is not UTF-8.
    """
    if len(payload) > max_bytes:
        least = "" if len(payload) < MAX_LINE_BYTES else "at least "
        raise RejectedError(f"payload: {least}{len(payload)} bytes, over the limit of {max_bytes}")
    if not payload.isascii():
        payload.decode("utf-8")  # the decoder does not look inside the strings that it skips


def usual_decoder(
    features: Any, names: Roles, time: Any = EventTime, default: Any = msgspec.NODEFAULT
) -> Callable[[bytes], Transaction]:
    """Makes the decoder of usual messages: values of exactly these types.

    Args:
      features: the type of the list.
      names: the keys of id, account and time.
      time: the type of the event time.
      default: stands for the list of a message that has none; without it, such a message is refused.
    """
    types = {"transaction_id": Identifier, "account_id": Identifier, "event_time": time}
    usual: Any = msgspec.defstruct(
        "Usual",
        [
            ("features", features, default),
            *((role, kind | None, None) for role, kind in types.items()),
            ("event_time_derived", bool | None, None),
        ],
        gc=False,
    )
    renamed = names.renamed()
    if not renamed:
        return msgspec.json.Decoder(usual).decode
    fields = [
        (f"own_{role}", types[role] | None, msgspec.field(default=None, name=name))
        for role, name in renamed.items()
    ]
    own_type: Any = msgspec.defstruct("Own", fields, bases=(usual,), gc=False)
    own = msgspec.json.Decoder(own_type).decode

    def decode(payload: bytes) -> Transaction:
        row: Transaction = own(payload)
        for role in renamed:
            value = getattr(row, f"own_{role}")
            if value is not None:
                setattr(row, role, value)
                if role == "event_time":  # event_time_derived speaks of the key event_time
                    row.event_time_derived = None
        return row

    return decode


def _read(payload: bytes, features: tuple[str, ...], names: Roles) -> Transaction:
    """Reads a message that the strict decoder refuses, value by value."""
    message = decode_any(payload)
    try:
        row = Transaction(values.features(message, features))
    except FeatureError as error:
        raise RejectedError(f"features: {error}") from None
    derived = message.get("event_time_derived")
    if not (derived is None or isinstance(derived, bool)):
        raise RejectedError(f"event_time_derived: {shown(derived)}, not true or false")
    row.transaction_id = _role(message, "transaction_id", names.transaction_id, roles.identifier)
    row.account_id = _role(message, "account_id", names.account_id, roles.identifier)
    row.event_time = _role(message, "event_time", names.event_time, roles.event_time)
    is_own = names.event_time != "event_time" and message.get(names.event_time) is not None
    row.event_time_derived = None if is_own else derived
    return row


def decode_any(payload: bytes) -> dict[str, Any]:
    """Decodes an object of any fields.

    Raises:
      RejectedError: it is no object.
      ArrayError: it is an array of objects.
    """
    try:
        message = _DECODE_ANY(payload)
    except msgspec.ValidationError:  # a number such as 1e999, which this decoder reads as infinite
        message = json.loads(payload, parse_int=_integer)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RejectedError(payload_reason(error)) from None
    if isinstance(message, list) and any(isinstance(element, dict) for element in message):
        raise ArrayError
    if not isinstance(message, dict):
        raise RejectedError(f"payload: {shown(message)}, not an object or an array of objects")
    return message


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < _MOST_DIGITS else math.inf


def _role(message: Mapping[str, Any], role: str, name: str, read: Callable[[Any], Any]) -> Any:
    value = message.get(name)
    if value is None:
        name, value = role, message.get(role)
    try:
        return read(value)
    except ValueError as error:
        raise RejectedError(f"{name}: {error}") from None


def payload_reason(error: Exception) -> str:
    """Says why a payload could not be decoded."""
    if isinstance(error, RecursionError):
        return "payload: nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"payload: not UTF-8 ({error.reason} at byte {error.start})"
    return f"payload: not JSON ({error})"
