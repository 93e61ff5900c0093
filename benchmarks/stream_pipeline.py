"""The streaming command, which also notes when each row was confirmed; a part of `benchmarks.stream`.

    python -m benchmarks.stream_pipeline FILE --subscription=... --model=... --output_dataset=...

FILE gets a record of six times for each row of scores: see `TIMES`. No product code takes part in that: a
subclass of the appender notes the times of the rows that it is handed, and the time of their confirmation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Final
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import streaming
from transforms.bigquery import shared
from transforms.bigquery.append import Appender
from transforms.bigquery.sending import Appended, Sending

TIMES: Final = ("event_time", "publish_time", "read_at", "scored_at", "stored_at")
"""Columns of the scores; behind them stands the time of the confirmation. All in microseconds since 1970."""


class NotingAppender(Appender):
    """Writes the times of the rows that it stores."""

    file = sys.stdout.buffer

    def submit(self, sending: Sending, batches: Iterable[pa.RecordBatch]) -> None:
        """Notes the times of the rows that are on their way."""
        batches = list(batches)
        self._noted = [*getattr(self, "_noted", ()), *map(times, batches)] if self._is_scores else []
        super().submit(sending, batches)

    def finish(self, sending: Sending) -> Appended:
        """Writes the times of the rows, all of which are confirmed."""
        result = super().finish(sending)
        now = time.time_ns() // 1000
        for noted in self._noted:
            record = np.column_stack([noted, np.full(len(noted), now, np.int64)])
            self.file.write(record.tobytes())
        self._noted = []
        self.file.flush()
        return result

    @property
    def _is_scores(self) -> bool:
        return "/tables/scores/" in self.stream


def times(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Takes the times of the rows of a batch, a column each."""
    columns = [batch.column(name).cast(pa.int64()).fill_null(0).to_numpy() for name in TIMES]
    return np.column_stack(columns)


def main() -> int:
    """Entry point."""
    with open(sys.argv[1], "ab") as file, mock.patch.object(shared, "Appender", NotingAppender):
        NotingAppender.file = file
        return streaming.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
