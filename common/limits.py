"""Limits that more than one room must agree on, each written once."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Longest message that is decoded, unless an option says otherwise; the publisher makes longer ones."""

MAX_APPEND_BYTES: Final = 8_000_000
"""Bytes of rows in one AppendRows request. BigQuery's limit is 10 MB for the whole request in its published
quotas (20 MB in newer service definitions); the rest is room for the schema and the envelope."""

MAX_STREAMS: Final = 10_000
"""Pending write streams that BigQuery commits at once, and that it creates in an hour for a project."""

MAX_SHARES: Final = MAX_STREAMS // 3
"""Shares into which a source is divided. A share is one bundle at most, with a stream in each of 3 tables."""

SPLIT_BYTES: Final = 32 * 1024 * 1024
"""Bytes of a file that one worker reads in one go; more where there are more than MAX_SHARES of them."""

MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
"""Bytes that a step gathers into one element, whatever its number of rows. A larger row stands alone."""

MAX_EVENT_AGE_DAYS: Final = 3650
"""Days that an event time may lie in the past, unless an option says otherwise: BigQuery takes streamed rows
into partitions of the last ten years. The publisher's simulated time keeps to it."""
