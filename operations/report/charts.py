"""The places of the parts of a chart: pure geometry, which the template writes as SVG.

A chart is WIDTH wide and HEIGHT high, in units of its viewBox. Its labels are data until the template escapes
them.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

WIDTH: Final = 400
HEIGHT: Final = 200
LEFT, RIGHT, TOP, BOTTOM = 48, 392, 22, 172
"""The sides of the area inside the axes."""

_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms"))
_MOST_DECADES: Final = 6
"""Labels of a logarithmic axis."""


@dataclass(frozen=True)
class Tick:
    """A label of an axis, and its place along the axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """One rectangle, circle or line of a series.

    Attributes:
      kind: the series, a name of ours that is the mark's class.
      points: the two corners of a rectangle, or the points of a line; one point is a dot.
    """

    kind: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """A drawn chart; `rules` are vertical lines with a label, such as thresholds."""

    bars: tuple[Mark, ...] = ()
    lines: tuple[Mark, ...] = ()
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    rules: tuple[Tick, ...] = ()
    series: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic scale from values to places.

    >>> Scale(0, 10, 100, 200)(5)
    150.0
    >>> Scale(1, 100, 0, 10, log=True)(10)
    5.0
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value, which is held inside the scale."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        share = (value - low) / (high - low) if high > low else 0.0
        return round(self.start + share * (self.end - self.start), 2)


def stacked(
    times: Sequence[dt.datetime], values: Mapping[str, Sequence[float]], step: int, names: Mapping[str, str]
) -> Chart:
    """Draws bars over time, the series of a bar on top of each other.

    Args:
      times: starts of the steps, ascending, at least one.
      values: of each series.
      step: seconds.
      names: of the series, for people.
    """
    x, x_ticks = time_axis(times[0], times[-1] + dt.timedelta(seconds=step))
    most = max(sum(each) for each in zip(*values.values(), strict=True))
    y, y_ticks = count_axis(most)
    bars = []
    for i, time in enumerate(times):
        base = 0.0
        left, right = x(time.timestamp()), x(time.timestamp() + step)
        for kind, column in values.items():
            if column[i]:
                corners = ((left, y(base + column[i])), (max(right - 0.5, left + 0.8), y(base)))
                bars.append(Mark(kind, corners))
            base += column[i]
    return Chart(tuple(bars), (), x_ticks, y_ticks, (), names)


def lines(
    times: Sequence[dt.datetime], values: Mapping[str, Sequence[float]], step: int, names: Mapping[str, str]
) -> Chart:
    """Draws milliseconds over time on a logarithmic scale, as lines that break where a step has no value.

    Args:
      times: starts of the steps, ascending, at least one.
      values: of each series; below 1 ms counts as 1 ms.
      step: seconds.
      names: of the series, for people.
    """
    x, x_ticks = time_axis(times[0], times[-1] + dt.timedelta(seconds=step))
    flat = [max(1.0, value) for column in values.values() for value in column]
    low, high = decades(min(flat), max(flat))
    y = Scale(low, high, BOTTOM, TOP, log=True)
    y_ticks = tuple(Tick(y(value), duration(value)) for value in powers(low, high))
    drawn = []
    for kind, column in values.items():
        run: list[tuple[float, float]] = []
        before = None
        for time, value in zip(times, column, strict=True):
            if before and (time - before).total_seconds() > step:
                drawn.append(Mark(kind, tuple(run)))
                run = []
            run.append((x(time.timestamp() + step / 2), y(max(1.0, value))))
            before = time
        drawn.append(Mark(kind, tuple(run)))
    return Chart((), tuple(drawn), x_ticks, y_ticks, (), names)


def histogram(
    bins: Mapping[int, Mapping[str, int]],
    per_decade: int,
    rules: Mapping[str, float],
    names: Mapping[str, str],
) -> Chart:
    """Draws counts by bins of a logarithmic scale; the count has one as well, so that few stay visible.

    Args:
      bins: counts by series, at least one; bin n is from 10 ** (n / per_decade) on.
      per_decade: bins.
      rules: values of the x axis that get a line, by their label.
      names: of the series, for people.
    """
    first, last = min(bins) / per_decade, (max(bins) + 1) / per_decade
    rules = {label: value for label, value in rules.items() if 0 < value < math.inf}
    places = [math.log10(value) for value in rules.values()]
    if places:  # with room for the labels on both sides
        room = 0.2 * (max(last, *places) - min(first, *places))
        first, last = min(first, min(places) - room), max(last, max(places) + room)
    x = Scale(first, last, LEFT, RIGHT)
    most = max(sum(counts.values()) for counts in bins.values())
    y = Scale(0.6, 10 ** math.ceil(math.log10(max(most, 2))), BOTTOM, TOP, log=True)
    bars = [
        Mark(kind, ((x(index / per_decade), y(count)), (x((index + 1) / per_decade) - 0.5, BOTTOM)))
        for index, counts in sorted(bins.items())
        for kind, count in sorted(counts.items(), key=lambda pair: -pair[1])  # the lower ones before
    ]
    skip = 1 + math.floor((last - first) / _MOST_DECADES)
    decades_shown = range(math.ceil(first), math.floor(last) + 1, skip)
    return Chart(
        tuple(bars),
        (),
        tuple(Tick(x(each), short(10.0**each)) for each in decades_shown),
        tuple(Tick(y(value), short(value)) for value in powers(1, y.high)),
        tuple(Tick(x(math.log10(value)), label) for label, value in rules.items()),
        names,
    )


def time_axis(first: dt.datetime, end: dt.datetime) -> tuple[Scale, tuple[Tick, ...]]:
    """Makes the scale of a time axis, and three labels of UTC in the detail that the length asks for."""
    length = (end - first).total_seconds()
    x = Scale(first.timestamp(), end.timestamp(), LEFT, RIGHT)
    form = "%H:%M:%S" if length <= 600 else "%H:%M" if length <= 86_400 else "%m-%d %H:%M"
    form = form if length <= 7 * 86_400 else "%Y-%m-%d"
    moments = [first + (end - first) * share for share in (0, 0.5, 1)]
    return x, tuple(Tick(x(each.timestamp()), each.astimezone(dt.UTC).strftime(form)) for each in moments)


def count_axis(most: float) -> tuple[Scale, tuple[Tick, ...]]:
    """Makes a scale from 0 on that ends at a round number, and its labels.

    >>> [tick.label for tick in count_axis(1234)[1]]
    ['0', '500', '1k', '1.5k']
    """
    rough = max(most, 1) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    steps = max(1, math.ceil(most / size))
    y = Scale(0, size * steps, BOTTOM, TOP)
    return y, tuple(Tick(y(size * i), short(size * i)) for i in range(steps + 1))


def decades(low: float, high: float) -> tuple[float, float]:
    """The powers of ten around two values, one decade at least.

    >>> decades(130, 669)
    (100.0, 1000.0)
    """
    first = math.floor(math.log10(low))
    return 10.0**first, 10.0 ** max(first + 1, math.ceil(math.log10(high)))


def powers(low: float, high: float) -> list[float]:
    """The powers of ten from `low` to `high`; some of them where they are many."""
    exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**each for each in exponents[:: 1 + len(exponents) // (_MOST_DECADES + 1)]]


def short(value: float) -> str:
    """A number in few characters.

    >>> [short(value) for value in (0, 7, 1500, 2_000_000, 1e15)]
    ['0', '7', '1.5k', '2M', '1e+15']
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def duration(milliseconds: float) -> str:
    """Milliseconds in the largest unit that fits.

    >>> [duration(value) for value in (7, 1500, 90_000_000)]
    ['7 ms', '1.5 s', '1.04 d']
    """
    size, unit = next((each for each in _UNITS if abs(milliseconds) >= each[0]), _UNITS[-1])
    return f"{milliseconds / size:.3g} {unit}"
