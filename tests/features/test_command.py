"""anomaly features: a first spec from a table, and a look at what a spec makes of one."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from common.anomaly import main
from features.guess import guess
from features.reading import parse, read

ROWS = 400


def cards() -> pa.Table:
    """Payments with a column of each kind."""
    random = np.random.default_rng(5)
    return pa.table(
        {
            "payment_id": [f"p-{i}" for i in range(ROWS)],
            "card": pa.StructArray.from_arrays([pa.array([f"c{i % 50}" for i in range(ROWS)])], ["account"]),
            "time": pa.array(np.arange(ROWS) * 60_000_000, pa.timestamp("us")),
            "amount": np.round(random.lognormal(3, 1, ROWS), 2),
            "country": [("NZ", "DE", None, "Österreich")[i % 4] for i in range(ROWS)],
            "mcc": pa.array([(5411, 5812)[i % 2] for i in range(ROWS)], pa.int32()),
            "age: of card": [None if i % 9 == 0 else float(i % 37) - 5 for i in range(ROWS)],
            "present": [i % 3 == 0 for i in range(ROWS)],
            "note": [f"note {i}" for i in range(ROWS)],
            "currency": ["EUR"] * ROWS,
            "charged_back": [i % 100 == 7 for i in range(ROWS)],
            "complaint": [{7: "stolen", 107: "copied"}.get(i % 200) for i in range(ROWS)],
            "is_fraud": pa.array([int(i % 100 == 7) for i in range(ROWS)], pa.int8()),
        }
    )


def test_a_first_spec_has_roles_features_and_reasons():
    text = guess(cards(), "cards.parquet")
    spec = parse(text)
    assert spec.to_json() == {
        "transaction_id": "payment_id",
        "account": "card.account",
        "event_time": "time",
        "amount": "amount",
        "label": "is_fraud",
        "features": [
            {"name": "amount", "kind": "number", "scale": "log"},
            {"name": "country", "kind": "category", "missing": "own"},
            {"name": "mcc", "kind": "category"},
            {"name": "age of card", "kind": "number", "from": "age: of card", "missing": "median"},
            {"name": "present", "kind": "boolean"},
            {"name": "time_of_day", "kind": "time_of_day"},
            {"name": "day_of_week", "kind": "day_of_week"},
        ],
    }
    assert "# 3 values: NZ 25 %, DE 25 %, Österreich 25 %; 25 % missing" in text
    assert "# note: 400 values in 400 rows tell rows apart, not kinds of rows" in text
    assert "# currency: has one value, EUR" in text
    for field in ("charged_back", "complaint"):  # the second has a value for frauds alone
        why = "its value alone tells is_fraud: it looks as if it were known afterwards only"
        assert f"# {field}: {why}" in text


def test_histories_of_an_account_are_proposed_as_comments_that_can_be_used():
    text = guess(cards(), "cards.parquet")
    spec = parse(text.replace("# - {", "- {"))
    assert [(feature.statistic, feature.of, feature.half_life) for feature in spec.history] == [
        ("deviation", "amount", "30d"),
        ("count", None, "1h"),
        ("novelty", "country", "90d"),
    ]
    without = guess(cards().drop_columns(["time"]), "cards.parquet")
    assert "kind: history" not in without


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_from_a_file_to_a_look_at_its_columns(form, tmp_path: Path, capsys):
    data, spec = tmp_path / f"cards.{form}", tmp_path / "new" / "features.yaml"
    rows = cards().to_pylist()
    if form == "parquet":
        parquet.write_table(cards(), data)
    elif form == "jsonl":
        data.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
    else:
        flat = [row | {"card.account": row.pop("card")["account"]} for row in rows]
        with data.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, flat[0])
            writer.writeheader()
            writer.writerows(flat)
    assert main(["features", "infer", "--data", str(data), "--output", str(spec)]) == 0
    assert read(spec).roles.account_id == "card.account"
    assert f"anomaly features check --features {spec} --data {data}" in capsys.readouterr().err
    check = ["features", "check", "--features", str(spec), "--data", str(data)]
    assert main([*check, "--format=json"]) == 0
    shown = capsys.readouterr()
    by_use = {row["becomes"].partition(":")[0]: row for row in json.loads(shown.out)}
    assert by_use["feature amount"]["column"] == "amount"
    assert by_use["feature country"]["becomes"] == (
        "feature country: category, rarity, 3 values of their own, others 6.004"
    )
    assert by_use["feature country"]["examples"].startswith("NZ -> 1.389; DE -> 1.389; nothing -> 1.389")
    assert by_use["account"]["examples"] == "c0, c1, c2"
    assert [row["column"] for row in by_use.values() if row["becomes"] == "not used"]
    assert shown.err == "400 rows, 0 of them refused\n"
    assert main(check) == 0


def test_refused_rows_are_counted_and_named(tmp_path: Path, capsys):
    data, spec = tmp_path / "cards.csv", tmp_path / "features.yaml"
    data.write_text("amount,country\n1.5,NZ\n,DE\n")
    spec.write_text("features:\n- {name: amount, kind: number}\n- {name: country, kind: category}\n")
    assert main(["features", "check", "--features", str(spec), "--data", str(data), "--format=csv"]) == 0
    shown = capsys.readouterr()
    assert "amount,feature amount: number,1.5 -> 1.5,1" in shown.out
    assert shown.err.splitlines() == [
        "2 rows, 1 of them refused",
        "  row 2: amount: expected a finite number within float32, got null",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("features:\n- {name: size, kind: number}", "no column 'size', which the model's feature spec names"),
        (
            "features:\n- {name: amount, kind: integer}",
            "features.yaml, line 2: features[0].kind: expected one of",
        ),
        ("features:\n- {name: place, kind: number}", "Column 'place' is bool, not a number"),
    ],
)
def test_a_spec_that_does_not_fit_is_an_error_of_one_line(content, reason, tmp_path: Path, capsys):
    data, spec = tmp_path / "cards.csv", tmp_path / "features.yaml"
    data.write_text("amount,place\n1.5,true\n")
    spec.write_text(content)
    assert main(["features", "check", "--features", str(spec), "--data", str(data)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert reason in error


def test_an_output_that_is_there_is_kept(tmp_path: Path, capsys):
    data, spec = tmp_path / "cards.csv", tmp_path / "features.yaml"
    data.write_text("amount\n1.5\n2.5\n")
    spec.write_text("mine")
    assert main(["features", "infer", "--data", str(data), "--output", str(spec)]) == 1
    assert spec.read_text() == "mine"
    assert "expected a new file, and there is one: name another" in capsys.readouterr().err
    assert main(["features", "infer", "--data", str(tmp_path / "none.csv")]) == 1
    assert "and there is no such file" in capsys.readouterr().err
    assert main(["features", "infer", "--data", str(data)]) == 0
    assert parse(capsys.readouterr().out).names == ("amount",)


GERMAN = """Buchungsnummer;Konto;Buchungszeit;Betrag;Land;Karte;Betrug
""" + "".join(
    f"B{i};K{i % 600};{i % 28 + 1:02}.05.2026 {i % 24:02}:17:00;{i % 90},{i % 100:02};"
    f"{('DE', 'AT')[i % 7 == 0]};{('nein', 'ja')[i % 3 > 0]};{('nein', 'ja')[i % 90 == 0]}\n"
    for i in range(1200)
)
"""A table with names of another language, semicolons, decimal commas, other dates and other labels."""

POLISH = GERMAN.replace("Buchungsnummer;Konto;Buchungszeit", "Numer;Rachunek;Czas").replace(
    "Betrug", "Oszustwo"
)
"""A table whose columns nobody knows by name."""


@pytest.mark.parametrize("suffix", ["csv", "txt", "csv.gz"])
def test_a_csv_in_another_dialect_is_read(suffix, tmp_path, capsys):
    path = tmp_path / f"rows.{suffix}"
    content = GERMAN.encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert main(["features", "infer", f"--data={path}"]) == 0
    assert parse(capsys.readouterr().out).to_json() == {
        "transaction_id": "Buchungsnummer",
        "account": "Konto",
        "event_time": {"from": "Buchungszeit", "format": "%d.%m.%Y %H:%M:%S"},
        "amount": "Betrag",
        "label": "Betrug",
        "features": [
            {"name": "Betrag", "kind": "number", "scale": "log"},
            {"name": "Land", "kind": "category"},
            {"name": "Karte", "kind": "boolean"},
            {"name": "time_of_day", "kind": "time_of_day"},
            {"name": "day_of_week", "kind": "day_of_week"},
        ],
    }


def test_of_columns_whose_names_are_not_known_is_said_what_they_may_be(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text(POLISH)
    assert main(["features", "infer", f"--data={path}"]) == 0
    text = capsys.readouterr().out
    spec = parse(text)
    assert spec.names == ("Betrag", "Land", "Karte", "time_of_day", "day_of_week")
    assert (spec.roles.event_time, spec.roles.label) == ("Czas", None)
    for words in (
        "Numer: another value in each row; if it is the id, write transaction_id: Numer",
        "Rachunek: 600 values, the 200 most frequent are 33 % of the rows: an id, not a kind of rows; "
        "if it is the account's, write account: Rachunek",
        "Oszustwo: nein 99 %, ja 1.2 %: if it says which rows are frauds, write label: Oszustwo",
    ):
        assert words in text, text


@pytest.mark.parametrize(
    ("moments", "chosen", "others"),
    [
        (["31.12.2026 14:05", "1.2.2026 5:03"], "%d.%m.%Y %H:%M", []),
        (["31/12/2026", "01/02/2026"], "%d/%m/%Y", []),
        (["12/31/2026 10:00", "01/02/2026 10:00"], "%m/%d/%Y %H:%M", []),
        (["03/04/2026", "01/02/2026"], "%d/%m/%Y", ["%m/%d/%Y"]),
        (["2026/12/31", "2026/01/02"], "%Y/%m/%d", []),
    ],
)
def test_the_pattern_of_times_is_that_of_all_values(moments, chosen, others):
    text = guess(pa.table({"day": moments, "amount": [1.5, 2.5]}), "rows")
    assert parse(text).roles.time_format == chosen
    assert ("or is its format" in text) == bool(others)
    assert all(other in text for other in others)


def test_a_number_that_mostly_is_zero_is_on_a_log_scale_only_where_it_is_skewed():
    discounts, tips = [0.0] * 60 + [5.0, 10.0] * 20, [0.0] * 60 + [0.5, 1.5] * 19 + [400.0, 900.0]
    spec = parse(guess(pa.table({"discount": discounts, "tip": tips}), "rows"))
    assert [(feature.kind, feature.scale) for feature in spec.features] == [
        ("number", "linear"),
        ("number", "log"),
    ]


def test_times_in_a_form_that_is_not_known_are_told_how_to_be_used():
    text = guess(pa.table({"day": ["2026/31/12", "2026/30/12"], "amount": [1.5, 2.5]}), "rows")
    assert 'such as 2026/31/12; to use it, write event_time: {from: day, format: "%d.%m.%Y"}' in text
