"""Named queries: the text, the formats, and the real SQL on the BigQuery emulator."""

import csv
import datetime as dt
import io
import json
import math

import pytest

from operations import pictures, query
from transforms import tables

NOW = dt.datetime(2026, 3, 8, 12, 0, tzinfo=dt.UTC)


def test_every_query_has_a_title_and_both_marks():
    assert "top_anomalies" in query.names()
    for name in query.names():
        assert query.text(name).startswith("-- ")
        changed = query.sql(name, "my-project.fraud", NOW, 7)
        assert "`anomaly." not in changed
        assert "`my-project.fraud." in changed
        assert "TIMESTAMP '2026-03-08 12:00:00+00' /* since */" in changed
        assert "7 /* limit */" in changed


def test_a_query_without_values_is_its_file():
    assert query.sql("latency", "anomaly") == query.text("latency")


def test_a_year_has_four_digits():
    assert query.timestamp(dt.datetime(1, 1, 1, tzinfo=dt.UTC)) == "0001-01-01 00:00:00+00"


def test_a_limit_that_bigquery_cannot_read_is_refused_at_once(capsys):
    argv = ["latency", "--dataset=my-project.anomaly", "--show_sql"]
    assert query.main([*argv, f"--limit={2**63 - 1}"]) == 0
    assert f"{2**63 - 1} /* limit */" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        query.main([*argv, f"--limit={2**63}"])
    assert ended.value.code == 2
    assert f"expected a whole number from 1 to {2**63 - 1}" in capsys.readouterr().err


def drift_rows():
    """Five days, two model versions over the last three of them."""
    return [
        {
            "day": NOW + dt.timedelta(days=day),
            "model_version": version,
            "transactions": 1000 * number + day,
            "alert_percent": 0.5 * number,
            "score_p50": 2.0,
            "score_p99": None if day == 0 else 11.0,
        }
        for number, version in enumerate(["v1", "v2"], 1)
        for day in range(5)
        if number == 1 or day > 1
    ]


def test_two_model_versions_are_two_lines_and_not_one_zigzag():
    figure = pictures.draw(drift_rows(), pictures.PICTURES["score_drift"], "Drift")
    assert len(figure.axes) == 4
    for axis in figure.axes:
        assert [line.get_label() for line in axis.lines] == ["v1", "v2"]
        assert [len(line.get_xdata()) for line in axis.lines] == [5, 3]
    first = figure.axes[0]
    assert list(first.lines[1].get_ydata()) == [2002, 2003, 2004]
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["v1", "v2"]
    assert math.isnan(figure.axes[3].lines[0].get_ydata()[0])


def test_each_reason_of_a_stage_is_a_bar_with_its_name():
    rows = [
        {"stage": stage, "reason": reason, "messages": n, "first_seen": NOW, "last_seen": NOW}
        for stage, reason, n in [
            ("parse", "payload: not JSON", 42),
            ("parse", "payload: N bytes, over the limit of 65536", 11),
            ("score", "anomaly_score: the model gave nan", 7),
            ("parse", "features: absent, and as named keys incomplete: Object missing required ", 3),
            ("sink", None, 1),
        ]
    ]
    (axis,) = pictures.draw(rows, pictures.PICTURES["dead_letters"], "Dead letters").axes
    bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in axis.patches}
    assert [bars[i].get_width() for i in range(5)] == [42, 11, 7, 3, 1]
    labels = [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]
    assert labels == [(row["reason"] or "(none)").strip() for row in rows]
    assert bars[0].get_facecolor() == bars[3].get_facecolor() != bars[2].get_facecolor()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["parse", "score", "sink"]
    assert axis.yaxis_inverted()


def test_a_long_heading_is_wrapped_and_inside_the_picture(tmp_path):
    heading = query.title("score_drift") + " word" * 40
    figure = pictures.draw(drift_rows(), pictures.PICTURES["score_drift"], heading)
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    (drawn,) = [text for text in figure.texts if "Alert rate" in text.get_text()]
    assert drawn.get_text().replace("\n", " ") == heading
    box = drawn.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_what_lists_single_rows_is_not_drawn(tmp_path, capsys):
    argv = ["top_anomalies", "--dataset=my-project.anomaly", f"--plot={tmp_path / 'a.png'}"]
    assert query.main(argv) == 2
    shown = capsys.readouterr().err
    assert "--plot: expected one of anomalies_by_account" in shown
    assert "got top_anomalies, which has no picture" in shown


def score_row(i, score, severity, moment, version="v1"):
    top = [{"feature": "V14", "contribution": score / 2}, {"feature": "V4", "contribution": score / 4}]
    return {
        "transaction_id": f"tx-{i}",
        "account_id": f"acc-{i % 2}",
        "event_time": moment.isoformat(),
        "anomaly_score": score,
        "severity": severity,
        "encoded": [0.0] * 4,
        "top_features": top,
        "model_version": version,
        "scored_at": (moment + dt.timedelta(milliseconds=100 * (i + 1))).isoformat(),
    }


CASINO = [
    {"feature": "V14", "contribution": 7.5, "value": "4312.5"},
    {"feature": "city", "contribution": 3.75, "value": '=HYPERLINK("//evil.example")\x1b[2J'},
]
"""The reasons of an alert, with a value that attacks a spreadsheet and a terminal."""


@pytest.fixture(scope="module")
def filled(bigquery_emulator):
    """A dataset with five scores, one of them stored twice, two alerts and three dead letters."""
    from common.clients import BigQueryEndpoints

    client = BigQueryEndpoints(bigquery_emulator.bigquery).client(bigquery_emulator.project)
    dataset = f"{bigquery_emulator.project}.queries"
    tables.create_tables(client, dataset)
    scores = [
        score_row(0, 1.0, "normal", NOW),
        score_row(1, 2.0, "normal", NOW),
        score_row(2, 30.0, "high", NOW),
        score_row(3, 15.0, "medium", NOW + dt.timedelta(hours=2))
        | {"amount": 4312.5, "top_features": CASINO},
        score_row(4, 3.0, "normal", NOW + dt.timedelta(days=1), "v2")
        | {"shadow_score": 12.0, "shadow_severity": "medium", "shadow_version": "v3"},
    ]
    scores.append(scores[2])
    alerts = [
        {key: value for key, value in row.items() if key != "encoded"} | {"threshold": 10.0}
        for row in scores[2:4]
    ]
    errors = [
        {
            "timestamp": NOW.isoformat(),
            "payloadString": text,
            "attributes": [],
            "errorMessage": message,
            "stage": "parse",
            "attempt": 0,
        }
        for text, message in [
            ("a", "payload: not JSON (Input data was truncated)"),
            ("b", "payload: 70000 bytes, over the limit of 65536"),
            ("c", "payload: 80000 bytes, over the limit of 65536"),
        ]
    ]
    windows = [
        {
            "window_start": NOW.isoformat(),
            "window_seconds": 60,
            "model_version": "v1",
            "run_id": "r",
            "pane": 0,
            "computed_at": NOW.isoformat(),
            "transactions": 3,
            "medium": 0,
            "high": 1,
            "score_mean": 11.0,
            "score_p50": 2.0,
            "score_p90": 30.0,
            "score_p99": 30.0,
            "score_max": 30.0,
            "score_bins": [],
        }
    ]
    profiles = [
        {
            "profiled_at": NOW.isoformat(),
            "model_version": "v1",
            "feature": name,
            "profile_id": "p",
            "transactions": 5,
            "every": 1,
            "outside": 1,
            "missing": 0,
            "bins": [{"place": 1, "transactions": 5, "share": 0.9}],
        }
        for name in ("Amount", "anomaly_score")
    ]
    stored = {
        "scores": scores,
        "alerts": alerts,
        "error_records": errors,
        "score_windows": windows,
        "feature_profiles": profiles,
    }
    for name, rows in stored.items():
        assert client.insert_rows_json(f"{dataset}.{name}", rows) == []
    return client, dataset


def rows_of(filled, name, **values):
    client, dataset = filled
    return query.run(client, query.sql(name, dataset, **values))


@pytest.mark.integration
def test_top_anomalies(filled):
    found = rows_of(filled, "top_anomalies", limit=2)
    assert [
        (row["transaction_id"], row["anomaly_score"], row["feature_1"], row["contribution_1"])
        for row in found
    ] == [
        ("tx-2", 30.0, "V14", 15.0),
        ("tx-3", 15.0, "V14", 7.5),
    ]


@pytest.mark.integration
def test_amount_and_values_are_shown_as_text(filled, bigquery_emulator, capsys):
    _, dataset = filled
    argv = ["top_anomalies", f"--dataset={dataset}", f"--since={NOW.date()}", "--limit=2"]
    endpoint = f"--bigquery_endpoint={bigquery_emulator.bigquery}"
    shown = {}
    for form in ("table", "csv", "json"):
        assert query.main([*argv, endpoint, f"--format={form}"]) == 0
        shown[form] = capsys.readouterr().out
    (line,) = [line for line in shown["table"].splitlines() if "tx-3" in line]
    assert line.split()[-6:] == [
        "V14",
        "4312.5",
        "7.5",
        "city",
        '=HYPERLINK("//evil.example")\\x1b[2J',
        "3.75",
    ]
    assert "  4,312.5  " in line
    _, row = csv.DictReader(io.StringIO(shown["csv"]))
    assert (row["amount"], row["value_1"]) == ("4312.5", "4312.5")
    assert row["value_2"] == '\'=HYPERLINK("//evil.example")\\x1b[2J'
    assert json.loads(shown["json"])[1]["value_2"] == CASINO[1]["value"]


@pytest.mark.integration
def test_anomalies_by_hour(filled):
    found = rows_of(filled, "anomalies_by_hour")
    assert [tuple(row.values())[1:] for row in found] == [(3, 0, 1, 33.333), (1, 1, 0, 100.0), (1, 0, 0, 0.0)]


@pytest.mark.integration
def test_since_leaves_out_what_is_older(filled):
    found = rows_of(filled, "anomalies_by_hour", since=NOW + dt.timedelta(hours=1))
    assert [row["transactions"] for row in found] == [1, 1]


@pytest.mark.integration
def test_anomalies_by_account_and_feature(filled):
    accounts = rows_of(filled, "anomalies_by_account")
    assert [tuple(row.values())[:5] for row in accounts] == [
        ("acc-0", 1, 1, 30.0, None),
        ("acc-1", 1, 0, 15.0, 4312.5),
    ]
    assert rows_of(filled, "anomalies_by_feature") == [
        {"feature": "V14", "alerts": 2, "high": 1, "mean_contribution": 11.25}
    ]


@pytest.mark.integration
def test_score_drift(filled):
    found = rows_of(filled, "score_drift")
    assert [(row["model_version"], row["transactions"], row["alert_percent"]) for row in found] == [
        ("v1", 4, 50.0),
        ("v2", 1, 0.0),
    ]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["anomalies_by_hour", "latency", "score_drift"])
def test_a_limit_keeps_the_latest_of_a_course(filled, name):
    everything = rows_of(filled, name)
    assert rows_of(filled, name, limit=1) == everything[-1:]
    assert [next(iter(row.values())) for row in everything] == sorted(
        next(iter(row.values())) for row in everything
    )


@pytest.mark.integration
def test_dead_letters(filled):
    found = rows_of(filled, "dead_letters")
    assert [(row["stage"], row["reason"].strip(), row["messages"]) for row in found] == [
        ("parse", "payload: N bytes, over the limit of 65536", 2),
        ("parse", "payload: not JSON", 1),
    ]


@pytest.mark.integration
def test_latency(filled):
    found = rows_of(filled, "latency")
    assert [(row["transactions"], row["max_ms"]) for row in found] == [(3, 300), (1, 400), (1, 500)]


@pytest.mark.integration
def test_the_command(filled, bigquery_emulator, capsys):
    _, dataset = filled
    argv = [
        "top_anomalies",
        "--dataset",
        dataset,
        "--since",
        "2026-01-01",
        "--limit",
        "1",
        "--format",
        "json",
    ]
    assert query.main([*argv, f"--bigquery_endpoint={bigquery_emulator.bigquery}"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["transaction_id"] == "tx-2"
    assert "Scans" in err
    assert "Cut at --limit=1: there may be more rows." in err
    argv[argv.index("1")] = "1000"
    assert query.main([*argv, f"--bigquery_endpoint={bigquery_emulator.bigquery}"]) == 0
    assert "Cut at" not in capsys.readouterr().err


@pytest.mark.integration
def test_a_dataset_that_is_not_there_is_named_with_the_command_that_makes_it(bigquery_emulator, capsys):
    argv = ["latency", "--dataset=local-project.none", f"--bigquery_endpoint={bigquery_emulator.bigquery}"]
    assert query.main(argv) == 1
    said = capsys.readouterr().err
    assert "anomaly resources create --project local-project --dataset none --emulators" in said


def test_without_credentials_the_command_says_how_to_sign_in(monkeypatch, capsys):
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    assert query.main(["latency", "--dataset=my-project.anomaly"]) == 1
    assert "gcloud auth application-default login" in capsys.readouterr().err


@pytest.mark.integration
def test_a_query_that_scans_too_much_is_refused_before_it_runs(
    filled, bigquery_emulator, monkeypatch, capsys
):
    _, dataset = filled
    monkeypatch.setattr(query, "run", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(query, "scanned_bytes", lambda *_: 2_000)
    argv = ["latency", f"--dataset={dataset}", f"--bigquery_endpoint={bigquery_emulator.bigquery}"]
    assert query.main([*argv, "--max_bytes=1000"]) == 1
    assert "would scan 2,000 bytes, over --max_bytes=1000: pass a later --since" in capsys.readouterr().err


@pytest.mark.integration
def test_a_picture_that_cannot_be_written_is_told(filled, bigquery_emulator, tmp_path, capsys):
    argv = ["score_drift", f"--dataset={filled[1]}", f"--bigquery_endpoint={bigquery_emulator.bigquery}"]
    assert query.main([*argv, "--since=2026-01-01", f"--plot={tmp_path / 'none' / 'a.png'}"]) == 2
    assert "--plot: no directory" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize("name", pictures.PICTURES)
def test_every_picture_names_columns_of_its_query(filled, bigquery_emulator, tmp_path, name):
    argv = [name, f"--dataset={filled[1]}", f"--bigquery_endpoint={bigquery_emulator.bigquery}"]
    assert query.main([*argv, "--since=2026-01-01", f"--plot={tmp_path / 'a.png'}"]) == 0
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.integration
def test_without_rows_nothing_is_drawn(filled, bigquery_emulator, tmp_path, capsys):
    argv = ["score_drift", f"--dataset={filled[1]}", f"--bigquery_endpoint={bigquery_emulator.bigquery}"]
    assert query.main([*argv, "--since=2030-01-01", f"--plot={tmp_path / 'a.png'}"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "No rows since 2030-01-01 00:00:00+00; --since reaches further back.\n"
    assert "--plot: no rows" in printed.err
    assert not (tmp_path / "a.png").exists()


def test_the_list(capsys):
    assert query.main(["list"]) == 0
    assert "top_anomalies" in capsys.readouterr().out
