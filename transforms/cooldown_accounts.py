"""The state of alert messages: of each account its last message, and how many alerts got none since."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

REMEMBERED: Final = 32
"""Alerts of an account that are known again when they are delivered once more."""
KEPT_MICROS: Final = 86_400_000_000
"""An account without an alert for so long is forgotten, and how many were suppressed; the table has these."""
_TOLD_BIT: Final = 1


@dataclass
class Account:
    """The alerts of an account since its last message.

    Attributes:
      at: time of the last message, in microseconds since the epoch.
      last: time of the last alert.
      severity: of the last message, as an index into SEVERITIES.
      suppressed: alerts without a message since.
      known: hash of the id of the latest alerts -> whether a message was of it, or has counted it.
    """

    at: int
    last: int
    severity: int = 0
    suppressed: int = 0
    known: dict[int, bool] = field(default_factory=dict)

    def is_told(self, identifier: str) -> bool | None:
        """Returns whether a message was of an alert, or has counted it; None for one that is not known."""
        return self.known.get(_hash(identifier))

    def remember(self, identifier: str, is_told: bool) -> None:
        """Remembers the fate of an alert, and forgets the oldest."""
        self.known[_hash(identifier)] = is_told
        if len(self.known) > REMEMBERED:
            del self.known[next(iter(self.known))]

    def forget(self, identifier: str) -> None:
        """Forgets an alert."""
        self.known.pop(_hash(identifier), None)


def _hash(identifier: str) -> int:
    return zlib.crc32(identifier.encode()) & ~_TOLD_BIT


class Accounts:
    """The accounts of a bucket.

    The whole bucket is read and written for each batch. So an account stays a list of numbers until it has an
    alert: to make objects of all of them took ten times as long.

    Args:
      data: that `to_bytes` returned; None for no accounts.
    """

    def __init__(self, data: bytes | None = None) -> None:
        self._packed: dict[str, list[Any]] = orjson.loads(data) if data else {}
        self._open: dict[str, Account] = {}

    def __len__(self) -> int:
        return len(self._packed.keys() | self._open.keys())

    def get(self, name: str) -> Account | None:
        """Returns an account, which may then be changed; None for one that is not there."""
        account = self._open.get(name)
        if account is None and (packed := self._packed.get(name)) is not None:
            account = self._open[name] = _unpacked(packed)
        return account

    def add(self, name: str, account: Account) -> Account:
        """Adds an account, and returns it."""
        self._open[name] = account
        return account

    def to_bytes(self, kept: int = KEPT_MICROS) -> bytes:
        """Encodes the accounts.

        Args:
          kept: accounts whose last alert is so many microseconds older than the latest one are left out.
        """
        for name, account in self._open.items():
            # The accounts are in the order of their latest alerts.
            self._packed.pop(name, None)
            self._packed[name] = _packed(account)
        oldest = max((account.last for account in self._open.values()), default=0) - kept
        while self._packed and self._packed[first := next(iter(self._packed))][_LAST] < oldest:
            del self._packed[first]
        return orjson.dumps(self._packed)


_LAST: Final = 0


def _packed(account: Account) -> list[Any]:
    known = [key | is_told for key, is_told in account.known.items()]
    return [account.last, account.at, account.severity, account.suppressed, known]


def _unpacked(packed: list[Any]) -> Account:
    last, at, severity, suppressed, known = packed
    fates = {key & ~_TOLD_BIT: bool(key & _TOLD_BIT) for key in known}
    return Account(at, last, severity, suppressed, fates)
