"""The picture of the planted kinds of fraud: for each kind, one account's payments before and around it.

Example:
  python -m benchmarks.card_picture --png docs/cards.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from common.command import command
from model.synthetic.cards import frauds
from model.synthetic.cards.generator import CardGenerator, CardPayments
from model.synthetic.cards.payments import ONLINE_CHANNEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER = 45, 6
"""Payments of the account that are drawn before the fraud, and after it."""
NORMAL, PLANTED = "#5b6c7d", "#d1495b"
TITLES = {
    "amount_spike": "amount far over the account's level",
    "card_testing": "burst of small payments within minutes",
    "new_country": "another country within hours",
    "night_use": "use at night",
    "new_category": "category that is new to the account",
    "merchant_compromise": "all cards of one merchant, used online",
}


def example(batch: CardPayments, kind: str) -> npt.NDArray[np.int64]:
    """Rows of the account of a fraud of a kind, an average one: enough before it, and no other fraud."""
    kinds = np.array(batch.planted_kinds, dtype=object)
    for row in np.flatnonzero(kinds == kind)[::-1].tolist():
        rows = np.flatnonzero(batch.payments.account == batch.payments.account[row])
        place = int(np.searchsorted(rows, row))
        rows = rows[max(place - BEFORE, 0) : place + AFTER]
        run = kinds[rows] == kind
        alone = set(kinds[rows]) == {None, kind}
        if place >= BEFORE and alone and not run[:20].any() and run.sum() > 1 - (kind == "amount_spike"):
            return rows
    raise RuntimeError(f"no account shows {kind} alone")


def draw(axes: Axes, batch: CardPayments, kind: str) -> None:
    """Draws the payments of one account: those that are planted in another colour."""
    rows = example(batch, kind)
    planted = batch.payments.kind[rows] > 0
    position = np.arange(len(rows))
    values: npt.NDArray[np.float64] | list[str]
    if kind == "new_country":
        is_here = batch.payments.channel[rows] != ONLINE_CHANNEL
        rows, planted, position = rows[is_here], planted[is_here], position[is_here]
        names = batch.countries
        values, label = [names[row] for row in rows], "country (payments at a till)"
    elif kind == "new_category":
        names = batch.categories
        values, label = [names[row].replace("_", " ") for row in rows], "category"
    elif kind == "night_use":
        values, label = batch.elapsed[rows] / 3600 % 24, "hour of the day, UTC"
        axes.axhspan(1, 5, color="#e8e8ef", zorder=0)
        axes.set_yticks(range(0, 25, 6))
        axes.set_ylim(0, 24)
    else:
        values, label = batch.payments.amount[rows], "amount in EUR"
        axes.set_yscale("log")
        axes.set_ylim(0.2, 20_000)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    # One call for both, so that categories keep one order.
    axes.scatter(
        position, values, c=np.where(planted, PLANTED, NORMAL), s=np.where(planted, 34, 16), zorder=3
    )
    axes.set_title(f"{kind}\n", loc="left", fontsize=11, fontweight="bold")
    axes.text(0, 1.03, TITLES[kind], transform=axes.transAxes, fontsize=9.5)
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#eeeeee", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Draws the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.card_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--png", type=Path, required=True, metavar="FILE", help="replaces the file")
    options = parser.parse_args(argv)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    generator = CardGenerator(seed=1, accounts=300, fraud_share=0.01)
    batch = generator.transactions(60_000)
    figure, grid = plt.subplots(2, 3, figsize=(14, 7), layout="constrained")
    for axes, kind in zip(grid.flat, frauds.KINDS, strict=True):
        draw(axes, batch, kind)
    for axes in grid[1]:
        axes.set_xlabel("payments of one account, in order")
    figure.savefig(options.png, dpi=90)
    plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
