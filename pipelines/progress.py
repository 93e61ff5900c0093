"""Shows on stderr what a stream on this machine has done, while it runs."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Final

from apache_beam.runners.runner import PipelineResult
from rich.console import Console

from transforms import metrics

LINE_SECONDS: Final = 60.0
"""Between two lines where stderr is no terminal."""
STATUS_SECONDS: Final = 1.0
"""Between two changes of the line of a terminal."""
_COUNTERS: Final = (
    ("rows read", metrics.ROWS_IN),
    ("scored", metrics.ROWS_SCORED),
    ("alerts", metrics.ALERTS),
    ("dead letters", metrics.DEAD_LETTERS),
)


def line(result: PipelineResult) -> str:
    """Says how many rows a job has read, scored, alerted and rejected so far."""
    totals = metrics.totals(result)
    return ", ".join(f"{words}: {totals.get(name, 0):,}" for words, name in _COUNTERS)


@contextlib.contextmanager
def shown(result: PipelineResult, seconds: float = LINE_SECONDS) -> Iterator[None]:
    """Shows the line of a job while a `with` block runs: in place in a terminal, otherwise again and again.

    Args:
      result: of the job.
      seconds: between two lines where stderr is no terminal.
    """
    console = Console(stderr=True)
    is_over = threading.Event()

    def repeat() -> None:
        if not console.is_terminal:
            while not is_over.wait(seconds):
                with contextlib.suppress(
                    RuntimeError
                ):  # a counter was new while they were read: the next time
                    print(line(result), file=sys.stderr, flush=True)
            return
        with console.status("waiting for messages") as status:
            while not is_over.wait(STATUS_SECONDS):
                with contextlib.suppress(RuntimeError):
                    status.update(line(result))

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
