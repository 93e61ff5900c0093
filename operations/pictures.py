"""Pictures of the named queries, for `anomaly query --plot`."""

from __future__ import annotations

import datetime as dt
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from common.output import safe_text

if TYPE_CHECKING:  # drawing is an extra
    from matplotlib.figure import Figure

_HEADING_WIDTH: Final = 110
_LABEL_WIDTH: Final = 60


@dataclass(frozen=True)
class Picture:
    """The way in which --plot draws the rows of a query.

    Attributes:
      x: the column of the points in time, or, with `bars`, of the names beside the bars.
      y: the columns with the numbers, an axis each; () for every column of numbers.
      series: a line, or a colour of bars, for each value of this column.
      bars: whether a row is a horizontal bar.
    """

    x: str
    y: tuple[str, ...] = ()
    series: str | None = None
    bars: bool = False


PICTURES: Final = {
    "anomalies_by_account": Picture("account_id", ("alerts", "high", "max_score"), bars=True),
    "anomalies_by_feature": Picture("feature", ("alerts", "high", "mean_contribution"), bars=True),
    "anomalies_by_hour": Picture("hour", ("transactions", "medium", "high", "alert_percent")),
    "dead_letters": Picture("reason", ("messages",), series="stage", bars=True),
    "feature_drift": Picture(
        "feature", ("psi", "outside_percent", "missing_percent"), "model_version", bars=True
    ),
    "latency": Picture(
        "minute",
        (
            "transactions",
            "p50_ms",
            "p99_ms",
            "publish_to_read_p99_ms",
            "read_to_scored_p99_ms",
            "scored_to_stored_p99_ms",
        ),
    ),
    "score_drift": Picture(
        "day", ("transactions", "alert_percent", "score_p50", "score_p99"), series="model_version"
    ),
    "score_quantiles": Picture(
        "hour", ("transactions", "score_p50", "score_p95", "score_p99"), series="model_version"
    ),
    "score_windows": Picture(
        "window_start",
        ("transactions", "medium", "high", "score_p50", "score_p99", "latency_p99_ms"),
        series="model_version",
    ),
    "shadow_agreement": Picture(
        "day", ("alerts", "shadow_alerts", "gained", "lost", "agreement_percent"), series="shadow_version"
    ),
}
"""The queries that can be drawn; the others list single rows."""


def draw(rows: Sequence[dict[str, Any]], picture: Picture, heading: str) -> Figure:
    """Draws rows: an axis a number, over time with a line a series, or with a horizontal bar a row.

    Args:
      rows: at least one.
      picture: what stands where.
      heading: wrapped to the width of the figure.
    """
    from matplotlib import rc_context

    # The text comes from messages: "$" begins no formula.
    with rc_context({"text.parse_math": False}):
        return _draw(rows, picture, heading)


def _draw(rows: Sequence[dict[str, Any]], picture: Picture, heading: str) -> Figure:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    names = picture.y or tuple(name for name in rows[0] if _is_number(rows, name))
    series = [_label(row[picture.series]) if picture.series else "" for row in rows]
    order = list(dict.fromkeys(series))
    figure = Figure(layout="constrained")
    figure.suptitle(textwrap.fill(heading, _HEADING_WIDTH), x=0.01, ha="left")
    if picture.bars:
        labels = [textwrap.fill(_label(row[picture.x]), _LABEL_WIDTH) for row in rows]
        figure.set_size_inches(11, 1.4 + 0.19 * sum(2 + label.count("\n") for label in labels))
        axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    else:
        figure.set_size_inches(11, 1.2 + 1.7 * len(names))
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        for number, one in enumerate(order):
            chosen = [i for i, value in enumerate(series) if value == one]
            values = [float("nan") if rows[i][name] is None else rows[i][name] for i in chosen]
            if picture.bars:
                axis.barh(chosen, values, label=one, color=f"C{number}")
            else:
                times, values = _with_gaps([rows[i][picture.x] for i in chosen], values)
                axis.plot(times, values, marker=".", label=one)
        axis.spines[["top", "right"]].set_visible(False)
        if picture.bars:
            axis.set_yticks(range(len(rows)), labels)
            axis.set_xlabel(name)
            axis.set_xlim(left=min(0, axis.get_xlim()[0]))
        else:
            axis.set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center")
            low, high = min(0, axis.get_ylim()[0]), axis.get_ylim()[1]
            axis.set_ylim(low, high + (high - low) / 20)
    if picture.bars:
        axes[0].invert_yaxis()  # the first row on top
    else:
        locator = AutoDateLocator()
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes[-1].set_xlabel(f"time of the {picture.x.removesuffix('_start')}, UTC")
    if picture.series:
        axes[0].legend(title=picture.series, fontsize="small")
    return figure


def _with_gaps(
    times: Sequence[dt.datetime], values: Sequence[float]
) -> tuple[list[dt.datetime], list[float]]:
    """Breaks a line where a time is left out: a row is missing where nothing was scored.

    >>> hours = [dt.datetime(2026, 3, 8, hour) for hour in (9, 10, 13)]
    >>> _with_gaps(hours, [5, 7, 6])[1]
    [5, 7, nan, 6]

    Args:
      times: in order, and some may be equal; the least distance between others is that of neighbours.
      values: at these times.
    """
    step = min(
        (later - earlier for earlier, later in pairwise(times) if later > earlier), default=dt.timedelta()
    )
    all_times, all_values = list(times[:1]), list(values[:1])
    for (earlier, later), value in zip(pairwise(times), values[1:], strict=True):
        is_gap = later - earlier > 1.5 * step
        all_times += [earlier + step, later] if is_gap else [later]
        all_values += [float("nan"), value] if is_gap else [value]
    return all_times, all_values


def _is_number(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return all(isinstance(row[name], (int, float)) or row[name] is None for row in rows)


def _label(value: Any) -> str:
    return "(none)" if value is None else safe_text(str(value).strip())
