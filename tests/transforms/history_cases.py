"""A spec with history, payments in the order of their times, and the values of one call of `update`."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from features.declaration import FeatureSpec
from features.history.plan import plans
from features.history.state import Block
from features.history.update import update
from features.learnt import NOTHING
from transforms.forms import Encoding
from transforms.history import with_rows
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.scores import feature_matrix

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def history(name: str, statistic: str, by: str = "account", **more: str) -> dict[str, str]:
    return {"name": name, "kind": "history", "statistic": statistic, "by": by, **more}


def spec_of(shop: str, **roles: str) -> FeatureSpec:
    """Makes a spec of an amount and of histories by the account and by the shop, which lies in that field."""
    features = [
        {"name": "amount", "kind": "number"},
        history("level", "deviation", of="amount", half_life="30d"),
        history("payments", "count", half_life="1d"),
        history("idle", "since_last"),
        history("new_shop", "novelty", of=shop),
        history("shop_share", "share", of=shop, half_life="90d"),
        history("shop_payments", "count", by=shop, half_life="1d"),
    ]
    return FeatureSpec.from_json({**roles, "features": features})


SPEC = spec_of("shop.name", transaction_id="id", account="card.account", event_time="time")
RULES = MessageRules(NOW, roles=SPEC.roles, encoding=Encoding(SPEC, NOTHING))


def payments(count: int, accounts: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    """Payments, some seconds to days apart; a few accounts are missing."""
    rng = np.random.default_rng(seed)
    times = NOW - dt.timedelta(days=60) + np.cumsum(rng.exponential(600, count)) * dt.timedelta(seconds=1)
    return [
        {
            "id": f"t-{i:06d}",
            "card": {"account": None if rng.random() < 0.02 else f"account {rng.integers(accounts)}"},
            "time": times[i].isoformat(),
            "amount": round(float(rng.lognormal(3, 1)), 2),
            "shop": {"name": f"shop {rng.integers(7)}"},
        }
        for i in range(count)
    ]


def payloads(rows: list[dict[str, Any]]) -> list[bytes]:
    return [orjson.dumps(row) for row in rows]


def transactions(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    parsed = parse_messages(MessageColumns(payloads(rows)), RULES)
    assert parsed.dead_letters.num_rows == 0
    return parsed.transactions


def expected(rows: list[dict[str, Any]], spec: FeatureSpec = SPEC) -> dict[str, np.ndarray]:
    """By transaction: the inputs of the model, the history by one call over all rows, as training does it."""
    batch = transactions(rows)
    matrix = feature_matrix(batch).copy()
    for plan in plans(spec):
        values, _ = update(plan, Block.empty(plan), with_rows(plan, batch)[1])
        matrix[:, list(plan.columns)] = values
    return dict(zip(batch["transaction_id"].to_pylist(), matrix, strict=True))


def assert_equal(batches: list[pa.RecordBatch], wanted: dict[str, np.ndarray]) -> None:
    """Each transaction is there once, its inputs and raw values are as wanted."""
    ids = [key for batch in batches for key in batch["transaction_id"].to_pylist()]
    assert sorted(ids) == sorted(wanted)
    matrix = np.concatenate([feature_matrix(batch) for batch in batches])
    np.testing.assert_allclose(matrix, np.array([wanted[key] for key in ids]), rtol=1e-6, atol=1e-6)
    raw = [row for batch in batches for row in batch["inputs"].to_pylist()]
    names = [feature.name for feature in SPEC.history]
    values = np.array([[row[name] for name in names] for row in raw])
    columns = [SPEC.inputs.index(name) for name in names]
    np.testing.assert_allclose(values, matrix[:, columns], rtol=1e-6, atol=1e-6)
