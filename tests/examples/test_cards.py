"""The way of examples/cards: payments, features, model, alerts, by the commands of its page."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from features import __main__ as features
from model import train
from pipelines import batch
from publisher import __main__ as publish

EXAMPLE = Path(__file__).parents[2] / "examples" / "cards"

pytestmark = pytest.mark.integration


def test_from_payments_to_alerts(tmp_path, capsys):
    payments, model, output = tmp_path / "payments.csv", tmp_path / "model", tmp_path / "alerts"
    spec, messages = EXAMPLE / "features.yaml", EXAMPLE / "messages.jsonl"
    flags = ["--spec=card", f"--csv={payments}", "--labelled", "--count=20000", "--seed=1"]
    assert publish.main([*flags, "--start_time=2026-01-01T00:00:00Z"]) == 0
    assert features.main(["check", f"--features={spec}", f"--data={payments}"]) == 0
    assert "merchant.category" in capsys.readouterr().out
    assert train.main([f"--data={payments}", f"--features={spec}", f"--output={model}", "--epochs=10"]) == 0
    assert "category: 18 values have a rarity" in capsys.readouterr().out
    assert batch.main([f"--input={messages}", f"--model={model}", f"--output={output}"]) == 0
    scores, alerts, dead = (
        pq.read_table(next(output.glob(f"{name}-*"))).to_pylist()
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
