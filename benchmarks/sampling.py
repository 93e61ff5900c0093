"""Finds where a process spends its time: the stacks of its threads, looked at every few milliseconds.

A profiler that hooks into every call would make a loop over messages look dearer than it is; a look from
outside costs every step the same.
"""

from __future__ import annotations

import collections
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType


def shares(
    action: Callable[[], object], steps: Mapping[str, tuple[str, ...]], rest: str, interval: float = 0.004
) -> dict[str, float]:
    """Runs `action` and tells which share of its time each step took.

    Args:
      action: what to run; its threads are looked at, those that wait for another one are not counted.
      steps: name to parts of "path:function"; a stack belongs to the step of its innermost frame that has one
        of them in its place.
      rest: name for stacks that belong to no step.
      interval: seconds between two looks.

    Returns:
      Name to share; the shares add up to 1.
    """
    counts: collections.Counter[str] = collections.Counter()
    done = threading.Event()

    def look() -> None:
        own = threading.get_ident()
        while not done.wait(interval):
            for thread, frame in sys._current_frames().items():
                if thread != own and not _waits(frame):
                    counts[_step(frame, steps, rest)] += 1

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    total = counts.total() or 1
    return {name: counts[name] / total for name in [*steps, rest]}


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _waits(frame: FrameType) -> bool:
    """Tells whether a thread stands in a lock, a queue or a selector: it waits for another one."""
    return frame.f_code.co_filename.endswith(("threading.py", "queue.py", "selectors.py", "_base.py"))


def _step(frame: FrameType | None, steps: Mapping[str, tuple[str, ...]], rest: str) -> str:
    while frame is not None:
        place = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
        for name, parts in steps.items():
            if any(part in place for part in parts):
                return name
        frame = frame.f_back
    return rest
