"""The page of examples/cards, run as it is written: payments, features, model, alerts, a table of them."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.pages import run_commands

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "cards" / "README.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.integration


def script() -> str:
    """The commands of the page, one after another, with a tenth of the payments to train on."""
    parts = []
    for language, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        parts.append(block if language == "bash" else f"python - <<'END'\n{block}END\n")
    text = "".join(parts)
    assert (text.count("--count 200000"), text.count("--skip 200000")) == (1, 1)
    return text.replace("--count 200000", "--count 20000").replace("--skip 200000", "--skip 20000")


@pytest.mark.timeout(900)
def test_from_payments_to_alerts(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = run_commands(script(), tmp_path)
    assert "merchant.category" in done.stdout
    assert "category: 18 values have a rarity" in done.stdout
    assert "value_1" in done.stdout
    assert "<dt>Amount</dt>" in (tmp_path / "out" / "cards.html").read_text(encoding="utf-8")
    found = [pq.read_table(path).to_pylist() for path in (tmp_path / "out" / "alerts").glob("alerts-*")]
    clauses = {top["value"] for rows in found for row in rows for top in row["top_features"]}
    assert any("over this account's 30-day level" in clause for clause in clauses), clauses
    scores, alerts, dead = (
        pq.read_table(next((tmp_path / "out" / "ten").glob(f"{name}-*"))).to_pylist()
        for name in ("scores", "alerts", "error_records")
    )
    assert len(scores) == 9
    assert "example-8" in {alert["transaction_id"] for alert in alerts}
    (large,) = [row for row in scores if row["transaction_id"] == "example-8"]
    assert large["amount"] == 9800
    assert ("amount", "9800") in {(top["feature"], top["value"]) for top in large["top_features"]}
    (abroad,) = [row for row in alerts if row["transaction_id"] == "example-9"]
    assert (abroad["top_features"][0]["feature"], abroad["top_features"][0]["value"]) == ("country", "NZ")
    (letter,) = dead
    assert "amount" in letter["errorMessage"]


def test_the_new_payments_are_those_after_the_ones_that_were_trained_on():
    text = PAGE.read_text(encoding="utf-8")
    lines = re.findall(r"anomaly publish .*", text)
    past, new = (dict(re.findall(r"--(seed|start_time|count|skip) (\S+)", line)) for line in lines)
    assert past["seed"] == new["seed"]
    assert past["start_time"] == new["start_time"]
    assert past["count"] == new["skip"]
