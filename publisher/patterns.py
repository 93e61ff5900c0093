"""Load patterns: the rate of messages as a pure function of the time since the start.

| pattern | rate |
|---|---|
| constant | `rate` throughout |
| ramp | from `rate` to `peak_rate` in a straight line over `period` seconds, `peak_rate` from then on |
| spike | `rate`, but `peak_rate` for `width` seconds in the middle of each `period` |
| burst | `peak_rate` for the first `width` seconds of each `period`, then silence |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol


class Pattern(Protocol):
    """A rate over time. Times in seconds since the start, rates in messages a second."""

    def rate(self, time: float) -> float:
        """The rate at `time`."""

    def due(self, time: float) -> float:
        """Counts the messages that are due by `time`: the integral of the rate from 0 to `time`."""


@dataclass(frozen=True)
class Constant:
    """The same `rate` throughout; 0 or infinity means as fast as possible."""

    messages_per_second: float = 0.0

    def __post_init__(self) -> None:
        _at_least("rate", self.messages_per_second, 0.0)

    def rate(self, time: float) -> float:
        """See Pattern."""
        return self.messages_per_second or math.inf

    def due(self, time: float) -> float:
        """See Pattern."""
        return self.rate(time) * time if time > 0 else 0.0


@dataclass(frozen=True)
class Ramp:
    """From `base` to `peak` in a straight line over `period` seconds, then `peak`. It can go down as well."""

    base: float
    peak: float
    period: float

    def __post_init__(self) -> None:
        _at_least("rate", self.base, 0.0)
        _above("peak_rate", self.peak, 0.0)
        _above("period", self.period, 0.0)

    def rate(self, time: float) -> float:
        """See Pattern."""
        return self.base + (self.peak - self.base) * min(time / self.period, 1.0)

    def due(self, time: float) -> float:
        """See Pattern."""
        climbing = min(time, self.period)
        return (self.base + self.rate(climbing)) / 2 * climbing + self.peak * (time - climbing)


@dataclass(frozen=True)
class Pulses:
    """`peak` for `width` seconds of every `period`, `start` seconds into it; `base` the rest of the time."""

    base: float
    peak: float
    period: float
    width: float
    start: float = 0.0

    def __post_init__(self) -> None:
        _at_least("rate", self.base, 0.0)
        _above("peak_rate", self.peak, 0.0)
        _above("period", self.period, 0.0)
        _above("width", self.width, 0.0)
        if self.start + self.width > self.period:
            raise ValueError(f"width: {self.width} s do not fit into a period of {self.period} s")

    def rate(self, time: float) -> float:
        """See Pattern."""
        into = time % self.period
        return self.peak if self.start <= into < self.start + self.width else self.base

    def due(self, time: float) -> float:
        """See Pattern."""
        periods, into = divmod(time, self.period)
        at_peak = periods * self.width + min(max(into - self.start, 0.0), self.width)
        return self.base * time + (self.peak - self.base) * at_peak


UNUSED: Final[dict[str, tuple[str, ...]]] = {
    "constant": ("peak_rate", "period", "width"),
    "ramp": ("width",),
    "spike": (),
    "burst": ("rate",),
}
"""The patterns, and for each the parameters that it does not look at."""
PATTERNS: Final = tuple(UNUSED)


def make(name: str, rate: float, peak_rate: float | None, period: float, width: float | None) -> Pattern:
    """The pattern `name` of the table above.

    Args:
      name: one of PATTERNS.
      rate: messages a second; 0 is as fast as possible for constant.
      peak_rate: messages a second; required for every pattern but constant.
      period: seconds.
      width: seconds; None is a tenth of the period.

    Raises:
      ValueError: a parameter is missing or out of its range; the text names it.
    """
    if name == "constant":
        return Constant(rate)
    if name not in PATTERNS:
        raise ValueError(f"pattern: {name!r} is none of {', '.join(PATTERNS)}")
    if peak_rate is None:
        raise ValueError(f"peak_rate: the pattern {name} needs one, in messages a second")
    width = period / 10 if width is None else width
    if name == "ramp":
        return Ramp(rate, peak_rate, period)
    if name == "spike":
        return Pulses(rate, peak_rate, period, width, start=(period - width) / 2)
    return Pulses(0.0, peak_rate, period, width)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name}: {value} is less than {least}")


def _above(name: str, value: float, bound: float) -> None:
    if not bound < value < math.inf:
        raise ValueError(f"{name}: {value} is not a finite number above {bound}")
