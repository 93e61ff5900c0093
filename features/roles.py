"""The fields of a transaction that are no features: its id, account and time. Names, and how values are read.

The rules hold for messages, files and tables alike; docs/messages.md has them in one table. It runs on
Python 3.9, because the TorchServe archive also carries it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from features.values import shown

MAX_ID_LENGTH: Final = 256
"""Characters in an id: at most 1,024 bytes in UTF-8, the limit of a Pub/Sub attribute."""


KEYS: Final = ("transaction_id", "account_id", "event_time")
"""The roles that every row has a column for."""


class RoleError(ValueError):
    """A role cannot be read from the column that is named for it.

    Attributes:
      role: field of Roles.
      reason: what was expected, and what came.
    """

    def __init__(self, role: str, reason: str) -> None:
        super().__init__(f"{role}: {reason}")
        self.role = role
        self.reason = reason


@dataclass(frozen=True)
class Roles:
    """The columns, or keys of a message, that are no features. A dot enters a nested one.

    Attributes:
      transaction_id: identifies a transaction. A row without one gets an id that is derived from its content.
      account_id: the account that made the transaction; it may be missing.
      event_time: when the transaction took place.
      time_format: how `event_time` is written: one of `features.declaration.TIME_FORMATS`, or a pattern, such
        as "%d.%m.%Y %H:%M".
      amount: shown to a reviewer beside the score; None for no such field.
      label: 1 for a fraud, for training and evaluation. It is never an input of the model.
      pass_through: fields that are carried from the message to scores and alerts.

    Raises:
      RoleError: the name of one of KEYS is empty, there twice, or that of another field.
    """

    transaction_id: str = "transaction_id"
    account_id: str = "account_id"
    event_time: str = "event_time"
    time_format: str = "any"
    amount: str | None = None
    label: str | None = None
    pass_through: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        own = [(key, getattr(self, key)) for key in KEYS]
        for role, name in own:
            taken = {other for key, column in own if key != role for other in (key, column)}
            if not name or name in taken | {"features", "event_time_derived"}:
                raise RoleError(role, f"expected a column that no other field is read from, got {name!r}")

    def renamed(self) -> dict[str, str]:
        """Returns the names that are not the role's own, by role."""
        names = {key: getattr(self, key) for key in KEYS}
        return {role: name for role, name in names.items() if role != name}


OPTIONS: Final = {
    "transaction_id": "--id_column",
    "account_id": "--account_column",
    "event_time": "--event_time_column",
}
"""The flag that names the column of a role."""
LABEL_NAMES: Final = frozenset(
    {
        "class",
        "fraud",
        "isfraud",
        "label",
        "fraudlabel",
        "target",
        "isfraudulent",
        "betrug",
        "fraude",
        "frode",
    }
)
ROLE_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "transaction_id": frozenset(
        {"transactionid", "txid", "txnid", "trxid", "transid", "transactionuuid", "transactionnumber", "id"}
        | {"uuid", "paymentid", "eventid", "reference", "transactionref", "transactionreference", "transnum"}
        | {"belegnummer", "buchungsnummer", "transaktionsid", "transaktionsnummer", "umsatzid"}
    ),
    "account_id": frozenset(
        {"accountid", "account", "accountnumber", "accountno", "cardid", "card", "cardnumber", "ccnum", "pan"}
        | {"customerid", "customer", "clientid", "userid", "cardtoken", "iban", "nameorig", "userkey"}
        | {"konto", "kontonummer", "kunde", "kundennummer", "karte", "kartennummer"}
    ),
    "event_time": frozenset(
        {"eventtime", "timestamp", "ts", "eventtimestamp", "transactiontime", "transactiondate", "datetime"}
        | {"createdat", "occurredat", "transdatetranstime", "transactiondatetime", "transactiontimestamp"}
        | {"eventts", "txtime", "authorizedat", "txdatetime"}
        | {"datum", "buchungsdatum", "buchungszeit", "transaktionsdatum", "zeitpunkt", "zeitstempel"}
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


EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)  # noqa: UP017  Python 3.9
EPOCH_UNITS: Final = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))
"""Numbers below count seconds, milliseconds, microseconds of so many each; larger ones nanoseconds."""
EPOCH_LIMIT: Final = 1e20
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]"
    r"([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?"
    r" ?(?:[Zz]|UTC|([+-])([01][0-9]|2[0-3])(?::?([0-5][0-9]))?)?"
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
                day, time, fraction, sign, hours, minutes = match.groups()
                offset = dt.timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
                digits = f"{fraction or ''}0000000"
                moment = dt.datetime.fromisoformat(f"{day}T{time}.{digits[:6]}+00:00")
                # As msgspec rounds the times of messages.
                moment += dt.timedelta(microseconds=int(digits[6] >= "5"))
                return moment + offset if sign == "-" else moment - offset
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


_ABSENT: Final = {
    "transaction_id": "a row without an id gets one from its content",
    "account_id": "a row without an account has none in the results",
    "event_time": "a row without a time takes that of the launch",
}
_SHOWN: Final = 12


class Unused(NamedTuple):
    """Sentences about columns that are not used: warnings where a name looks like a role, and notes."""

    warnings: list[str]
    notes: list[str]


def unused_columns(names: Sequence[str], roles: Roles, others: Sequence[str]) -> Unused:
    """Says which columns of a source are not used, and which of them may be the id, the account or the time.

    >>> unused_columns(["ts", "account_id", "transaction_id", "V1"], Roles(), ["V1"]).warnings[0]
    "there is no column event_time; 'ts' may be it: pass --event_time_column=ts"

    Args:
      names: of the source.
      roles: the columns of id, account and time.
      others: the other columns that are read.

    Raises:
      ValueError: several columns differ in case alone.
    """
    columns = {key: getattr(roles, key) for key in KEYS}
    present = {find_column(names, name) for name in (*columns.values(), *others)}
    unused = [name for name in names if name not in present]
    warnings, notes = [], []
    for role, wanted in columns.items():
        outer = wanted.partition(".")[0]
        if find_column(names, wanted) is not None or (
            outer != wanted and find_column(names, outer) is not None
        ):
            continue
        absent = f"there is no column {wanted}"
        alike = resembling(unused, ROLE_NAMES[role])
        if alike:
            warnings.append(f"{absent}; {alike[0]!r} may be it: pass {OPTIONS[role]}={alike[0]}")
        else:
            notes.append(f"{absent}: {_ABSENT[role]}")
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        line = f"columns that are not used: {', '.join(unused[:_SHOWN])}{more}"
        (warnings if warnings else notes).append(line)
    return Unused(warnings, notes)
