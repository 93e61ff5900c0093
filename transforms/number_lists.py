"""Decodes lists of numbers of many messages at once, without a Python object for each number.

A message is taken apart by msgspec, which leaves the list as it came. simdjson then reads the lists of some
messages in one go. Both read the same JSON and round alike. Where anything is unusual, nothing is read here,
and `transforms.decode` decides what becomes of the message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import simdjson

from features.roles import Roles
from transforms.decode import RejectedError, Transaction, checked_payload, usual_decoder

LEAST_MESSAGES: Final = 32
"""Fewer messages are decoded one by one: the calls for all of them would cost more."""
AT_ONCE: Final = 64
"""Lists that are read in one go: where one of them is unusual, so many are read again."""


@functools.lru_cache(maxsize=64)
def raw_decoder(
    names: Roles, max_bytes: int, exact: Callable[[bytes], Transaction]
) -> Callable[[bytes], Transaction]:
    """Makes the function that decodes a message but for its list of numbers, which stays raw JSON.

    >>> from transforms.decode import decoder
    >>> decode = raw_decoder(Roles(), 65_536, decoder(("amount",), Roles(), 65_536))
    >>> bytes(decode(b'{"account_id": "a", "features": [12.5]}').features)
    b'[12.5]'

    Args:
      names: the keys of id, account and time.
      max_bytes: the longest payload that is decoded.
      exact: decodes a message in which anything is unusual, and says what is wrong.
    """
    usual = usual_decoder(msgspec.Raw, names)

    def decode(payload: bytes) -> Transaction:
        try:
            if len(payload) > max_bytes or not payload.isascii():
                checked_payload(payload, max_bytes)
            row = usual(payload)
        except (msgspec.MsgspecError, RecursionError, RejectedError, UnicodeDecodeError):
            return exact(payload)
        return exact(payload) if row.features is msgspec.UNSET else row

    return decode


def read_lists(lists: Sequence[Any], width: int) -> npt.NDArray[np.float64] | None:
    """Reads lists of numbers; None where one of them is anything but a list of `width` numbers.

    >>> read_lists([b"[1, 2.5]", b"[3,4]"], 2).tolist()
    [[1.0, 2.5], [3.0, 4.0]]
    >>> read_lists([b"[1, 2, 3]", b"[4]"], 2) is None
    True

    Args:
      lists: JSON values, at least one, each valid by itself but for its numbers.
      width: numbers of a list.
    """
    text = b"[" + b",".join(lists) + b"]"
    try:
        array: Any = simdjson.Parser().parse(text)
        numbers = np.frombuffer(array.as_buffer(of_type="d"))
        widths = {len(each) for each in array}
    except (ValueError, TypeError, RuntimeError):  # no JSON, no number, a number of too many digits, no list
        return None
    # All values are numbers, however they are nested: with so few brackets they are not.
    if widths != {width} or text.count(b"[") != 1 + len(lists):
        return None
    return numbers.reshape(-1, width)
