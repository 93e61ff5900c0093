"""Finds where a process spends its time: the stack of its main thread, looked at every few milliseconds.

A profiler that hooks into every call would make a loop over messages look dearer than it is. A thread that
looks from beside has to wait until the other one lets it, which long calls of native code do not.
"""

from __future__ import annotations

import collections
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType


def shares(
    action: Callable[[], object], steps: Mapping[str, tuple[str, ...]], rest: str, interval: float = 0.004
) -> dict[str, float]:
    """Runs `action` and tells which share of its CPU time each step took. Call it in the main thread.

    A look comes at the end of a call of native code, however long that took, so that each one counts the CPU
    time since the one before.

    Args:
      action: what to run; its work in other threads is not seen.
      steps: name to parts of "path:function"; a stack belongs to the step of its innermost frame that has one
        of them in its place.
      rest: name for stacks that belong to no step.
      interval: seconds of CPU time between two looks.

    Returns:
      Name to share; the shares add up to 1.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    last = time.thread_time()

    def look(_: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.thread_time()
        seconds[_step(frame, steps, rest)] += now - last
        last = now

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, interval, interval)
    try:
        action()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    total = sum(seconds.values()) or 1
    return {name: seconds[name] / total for name in [*steps, rest]}


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _step(frame: FrameType | None, steps: Mapping[str, tuple[str, ...]], rest: str) -> str:
    while frame is not None:
        place = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
        for name, parts in steps.items():
            if any(part in place for part in parts):
                return name
        frame = frame.f_back
    return rest
