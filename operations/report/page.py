"""The page: HTML with its style and drawings inside, without scripts, images and links to anywhere.

Jinja2 escapes every value. Nothing here marks text as safe, and the policy in the page forbids the browser
whatever is not the style sheet, so that text of a message stays text.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import jinja2

from common.output import safe_text
from operations.reasons import reasons
from operations.report import charts
from operations.report.figures import Figures
from operations.report.sections import SECTIONS, Alert

LONGEST: Final = 160
"""Characters of a text that is shown; the rest of it is an ellipsis."""


@dataclass(frozen=True)
class Refresh:
    """The way in which a served page stays up to date.

    Attributes:
      seconds: between two loads.
      paused: whether the page waits for its reader.
    """

    seconds: int
    paused: bool = False


@functools.cache
def policy() -> str:
    """The Content-Security-Policy of the page: its own style sheet, and nothing else."""
    style = _environment().get_template("page.css").render()  # as the page includes it
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def render(figures: Figures | None, refresh: Refresh | None = None, problem: str = "") -> bytes:
    """Makes the page.

    Args:
      figures: to show; None while there are none.
      refresh: of a page that is served; None for a file.
      problem: shown above the figures, when the last try to read them failed.
    """
    text = (
        _environment()
        .get_template("page.html")
        .render(
            figures=figures,
            sections=[(each, figures.rows[each.statement]) for each in SECTIONS] if figures else [],
            tiles=tiles(figures) if figures else [],
            refresh=refresh,
            problem=problem,
            policy=policy(),
        )
    )
    return text.encode("utf-8", "backslashreplace")


def tiles(figures: Figures) -> list[tuple[str, str]]:
    """The figures at the top of the page: name and value."""
    counts = figures.rows["alerts_over_time"]
    transactions = sum(row["transactions"] for row in counts)
    alerts = sum(row["medium"] + row["high"] for row in counts)
    letters = sum(row["messages"] for row in figures.rows["dead_letters"])
    last = figures.extent["last_scored"]
    share = f" ({100 * alerts / transactions:.3g}\N{NO-BREAK SPACE}%)" if transactions else ""
    age = charts.duration(max(0.0, (figures.made_at - last).total_seconds()) * 1000) if last else "-"
    return [
        ("Transactions", f"{transactions:,}"),
        ("Alerts", f"{alerts:,}{share}"),
        ("Dead letters", f"{letters:,}"),
        ("Since the last score", age),
    ]


def shown(value: Any) -> str:
    """A value as text without control characters and of bounded length.

    >>> shown(None), shown(1234.5678), shown("a\\nb")
    ('-', '1,234.568', 'a\\\\nb')
    """
    if value is None:
        return "-"
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".") if 1e-3 <= abs(value) < 1e12 else f"{value:g}"
    if isinstance(value, list):
        return shown(reasons(value))
    text = str(value)
    return safe_text(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def kind(drawn: Any) -> str:
    """The macro that draws what a section made."""
    if isinstance(drawn, charts.Chart):
        return "chart"
    return "alerts" if any(isinstance(each, Alert) for each in drawn) else "bars"


def points(mark: charts.Mark) -> str:
    """The points of a line as SVG has them."""
    return " ".join(f"{x},{y}" for x, y in mark.points)


def _read(name: str) -> str:
    return resources.files("operations.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "kind": kind, "points": points}
    environment.globals.update(charts=charts, view_box=f"0 0 {charts.WIDTH} {charts.HEIGHT}")
    return environment
