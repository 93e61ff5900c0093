"""Pictures of rows whose text a stranger wrote."""

from __future__ import annotations

import datetime as dt

import pytest

from operations import query
from operations.pictures import PICTURES, draw

pytest.importorskip("matplotlib", reason="drawing needs the extra local")


@pytest.mark.parametrize("name", [r"$\frac$", "a$b$c", "\x1b[31mred", "a\u202eb"])
def test_a_hostile_account_is_drawn_as_it_is_written(tmp_path, name):
    rows = [{"account_id": name, "alerts": 2, "high": 1, "max_score": 3.0}]
    figure = draw(rows, PICTURES["anomalies_by_account"], "Alerts by account")
    figure.savefig(tmp_path / "x.png")
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text() == name.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")


def test_a_hostile_reason_is_drawn_in_the_legend_too(tmp_path):
    rows = [{"reason": r"$\sqrt$", "messages": 2, "stage": "$parse"}]
    draw(rows, PICTURES["dead_letters"], "Dead letters").savefig(tmp_path / "x.png")


@pytest.mark.parametrize("plot", ["", ".", "out/"])
def test_a_picture_needs_the_name_of_a_file(plot, capsys):
    """matplotlib would write .png beside the directory."""
    assert query.main(["score_drift", "--dataset=my-project.anomaly", f"--plot={plot}"]) == 2
    assert "--plot: expected a file such as out/score_drift.png" in capsys.readouterr().err


def test_a_line_breaks_where_a_time_is_left_out():
    start = dt.datetime(2026, 3, 8, tzinfo=dt.UTC)
    rows = [
        {
            "hour": start + dt.timedelta(hours=hour),
            "transactions": 5,
            "medium": 1,
            "high": 0,
            "alert_percent": 20,
        }
        for hour in (0, 1, 1, 2, 9, 10)
    ]
    (line,) = draw(rows, PICTURES["anomalies_by_hour"], "By hour").axes[0].lines
    assert [str(value) for value in line.get_ydata()] == ["5.0", "5.0", "5.0", "5.0", "nan", "5.0", "5.0"]
