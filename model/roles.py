"""The fields of a transaction that are no features: its id, account and time. Names, and how values are read.

The rules hold for messages, files and tables alike; docs/messages.md has them in one table.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from model.values import shown

MAX_ID_LENGTH: Final = 256
"""Characters in an id: at most 1,024 bytes in UTF-8, the limit of a Pub/Sub attribute."""


@dataclass(frozen=True)
class Roles:
    """The columns, or keys of a message, that hold id, account and time.

    Raises:
      ValueError: a name is empty, there twice, or that of another role.
    """

    transaction_id: str = "transaction_id"
    account_id: str = "account_id"
    event_time: str = "event_time"

    def __post_init__(self) -> None:
        own = [(field.name, getattr(self, field.name)) for field in fields(self)]
        for role, name in own:
            taken = {other for key, column in own if key != role for other in (key, column)}
            if not name or name in taken | {"features", "event_time_derived"}:
                raise ValueError(f"{role}: expected a column that no other field is read from, got {name!r}")

    def renamed(self) -> dict[str, str]:
        """Returns the names that are not the role's own, by role."""
        names = {field.name: getattr(self, field.name) for field in fields(self)}
        return {role: name for role, name in names.items() if role != name}


OPTIONS: Final = {
    "transaction_id": "--id_column",
    "account_id": "--account_column",
    "event_time": "--event_time_column",
}
"""The flag that names the column of a role."""
LABEL_NAMES: Final = frozenset({"class", "fraud", "isfraud", "label", "fraudlabel", "target", "isfraudulent"})
ROLE_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "transaction_id": frozenset(
        {"transactionid", "txid", "txnid", "trxid", "transid", "transactionuuid", "transactionnumber", "id"}
        | {"uuid", "paymentid", "eventid", "reference", "transactionref", "transactionreference", "transnum"}
    ),
    "account_id": frozenset(
        {"accountid", "account", "accountnumber", "accountno", "cardid", "card", "cardnumber", "ccnum", "pan"}
        | {"customerid", "customer", "clientid", "userid", "cardtoken", "iban", "nameorig", "userkey"}
    ),
    "event_time": frozenset(
        {"eventtime", "timestamp", "ts", "eventtimestamp", "transactiontime", "transactiondate", "datetime"}
        | {"createdat", "occurredat", "transdatetranstime", "transactiondatetime", "transactiontimestamp"}
        | {"eventts", "txtime", "authorizedat", "txdatetime"}
    ),
}
"""Names under which people keep a role, as `plain_name` gives them."""


def plain_name(name: str) -> str:
    """Returns a name without case and signs, so that spellings of one name are equal.

    >>> plain_name("Transaction-ID"), plain_name("transactionId")
    ('transactionid', 'transactionid')
    """
    return re.sub(r"[\W_]", "", name).lower()


def resembling(names: Iterable[str], known: frozenset[str]) -> list[str]:
    """Returns the names that look like one that is known.

    >>> resembling(["isFraud", "Amount"], LABEL_NAMES)
    ['isFraud']
    """
    return [name for name in names if plain_name(name) in known]


def find_column(names: Sequence[str], wanted: str) -> str | None:
    """Finds a column as SQL does: by its name, otherwise by its name without case. None where there is none.

    >>> find_column(["AMOUNT", "v1"], "V1"), find_column(["time", "Time"], "Time"), find_column([], "V1")
    ('v1', 'Time', None)

    Raises:
      ValueError: several columns have the name without case, and none with it.
    """
    if wanted in names:
        return wanted
    alike = [name for name in names if name.lower() == wanted.lower()]
    if len(alike) > 1:
        raise ValueError(
            f"columns {' and '.join(alike)} differ in case alone, and none is {wanted}: keep one"
        )
    return alike[0] if alike else None


def identifier(value: Any) -> str | None:
    """Reads an id: a text of 1 to 256 characters, or an integer. None has none.

    >>> identifier("t-1"), identifier(42), identifier(None)
    ('t-1', '42', None)

    Raises:
      ValueError: it is neither.
    """
    if value is None:
        return None
    if type(value) is int and abs(value) < 10**MAX_ID_LENGTH:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)}, not a text or an integer")
    if not 1 <= len(value) <= MAX_ID_LENGTH:
        raise ValueError(f"{len(value)} characters, not 1 to {MAX_ID_LENGTH}")
    return value


EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
EPOCH_UNITS: Final = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))
"""Numbers below count seconds, milliseconds, microseconds of so many each; larger ones nanoseconds."""
EPOCH_LIMIT: Final = 1e20
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]"
    r"([0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?)"
    r" ?([Zz]|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
_DIGITS: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE]\+?[0-9]+)?")


def event_time(value: Any) -> dt.datetime | None:
    """Reads a point in time; None has none.

    A text is a date and a time with T or a blank between, and the offset from UTC: none (UTC), Z, UTC, +01,
    +0100 or +01:00. A number, also as text, counts from 1970: seconds, milliseconds, microseconds or
    nanoseconds, by its size.

    >>> event_time("2026-11-25 09:18:26 UTC") == event_time(1795598306) == event_time(1795598306000)
    True

    Raises:
      ValueError: it is no time, or outside the years 1 to 9999.
    """
    if value is None:
        return None
    try:
        if type(value) is str:
            text = value.strip()
            if match := _TIME.fullmatch(text):
                day, time, offset = match.groups()
                offset = "+00:00" if offset in (None, "UTC", "Z", "z") else offset
                return dt.datetime.fromisoformat(f"{day}T{time}{offset}")
            if _DIGITS.fullmatch(text):
                value = int(text) if text.lstrip("-").isdigit() else float(text)
        if type(value) is int or type(value) is float:
            return EPOCH + dt.timedelta(microseconds=_micros(value))
    except (ValueError, OverflowError):
        raise ValueError(f"{shown(value)} that is no time of the calendar") from None
    raise ValueError(
        f"{shown(value)} that is no time; expected RFC 3339 such as 2026-03-01T11:00:00Z, or a number of "
        "seconds, milliseconds, microseconds or nanoseconds since 1970"
    )


def _micros(value: int | float) -> int:
    for limit, micros in EPOCH_UNITS:
        if abs(value) < limit:
            return round(value * micros)
    if abs(value) >= EPOCH_LIMIT:
        raise OverflowError
    return round(value // 1000)
