"""Limits that more than one room must agree on, each written once."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Longest message that is decoded, unless an option says otherwise; the publisher makes longer ones."""
