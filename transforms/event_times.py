"""The event times that the rules allow."""

from __future__ import annotations

import datetime as dt
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.json_rows import moment_text
from transforms.message import MessageRules, event_time_bounds, outside_text
from transforms.schema import TRANSACTIONS

EVENT_TIME: Final = TRANSACTIONS.field("event_time").type


def outside_reasons(times: pa.Array, default: dt.datetime, rules: MessageRules) -> dict[int, str]:
    """Reasons, by row number, for the times that the rules do not allow."""
    bounds = event_time_bounds(default, rules)
    earliest, latest = (pa.scalar(bound, EVENT_TIME) for bound in bounds)
    least, most = pc.min_max(times).values()
    if not least.is_valid or (earliest.value <= least.value and most.value <= latest.value):
        return {}  # the usual case
    outside = pc.or_(pc.less(times, earliest), pc.greater(times, latest))
    rows = np.flatnonzero(pc.fill_null(outside, False).to_numpy(zero_copy_only=False)).tolist()
    return {
        row: outside_text(moment_text(times[row]), times[row].value < earliest.value, rules) for row in rows
    }
