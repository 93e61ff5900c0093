"""Parses messages of own features beside the list of 30 numbers, side by side in one run.

    python -m benchmarks.own_features

The own features are 12 mixed ones, some of them of nested fields: numbers, booleans, categories, and times.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import orjson

from common.command import Parser, command
from common.output import print_rows
from features.declaration import FeatureSpec
from features.learnt import Learnt, Rarity
from features.ulb import FEATURES
from transforms.forms import Encoding
from transforms.message import MessageColumns, MessageRules, parse_messages

NOW: Final = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SPEC: Final = FeatureSpec.from_json(
    {
        "transaction_id": "id",
        "account": "card.account",
        "event_time": "time",
        "amount": "amount",
        "features": [
            {"name": "amount", "kind": "number", "scale": "log"},
            {"name": "tip", "kind": "number", "missing": 0},
            {"name": "risk", "from": "card.risk", "kind": "number", "missing": 0},
            {"name": "age", "from": "card.age", "kind": "number"},
            {"name": "present", "kind": "boolean"},
            {"name": "recurring", "kind": "boolean"},
            {"name": "mcc", "from": "merchant.mcc", "kind": "category"},
            {"name": "country", "from": "merchant.country", "kind": "category", "missing": "own"},
            {"name": "currency", "kind": "category"},
            {"name": "channel", "kind": "category"},
            {"name": "hour", "kind": "time_of_day", "timezone": "Europe/Berlin"},
            {"name": "weekday", "kind": "day_of_week", "timezone": "Europe/Berlin"},
        ],
    }
)
_CATEGORIES: Final = {
    "mcc": tuple(f"{5000 + i}" for i in range(200)),
    "country": ("DE", "FR", "NZ", "US"),
    "currency": ("EUR", "USD"),
    "channel": ("web", "chip", "atm"),
}


def numbers(count: int, rng: np.random.Generator) -> list[bytes]:
    """Messages that are lists of 30 numbers."""
    values = rng.normal(size=(count, len(FEATURES))).round(6).tolist()
    return [
        orjson.dumps(
            {"transaction_id": f"t-{i}", "account_id": f"a-{i % 999}", "event_time": NOW, "features": row}
        )
        for i, row in enumerate(values)
    ]


def objects(count: int, rng: np.random.Generator) -> list[bytes]:
    """Messages of SPEC."""
    chosen = {name: rng.choice(values, count).tolist() for name, values in _CATEGORIES.items()}
    amounts, ages = rng.lognormal(3, 1, count).round(2).tolist(), rng.integers(0, 3000, count).tolist()
    return [
        orjson.dumps(
            {
                "id": f"t-{i}",
                "time": NOW,
                "card": {"account": f"a-{i % 999}", "age": ages[i], "risk": i % 100 / 100},
                "amount": amounts[i],
                "tip": None if i % 3 else 1.5,
                "present": i % 2 == 0,
                "recurring": i % 9 == 0,
                "merchant": {"mcc": chosen["mcc"][i], "country": chosen["country"][i], "name": "Café 7"},
                "currency": chosen["currency"][i],
                "channel": chosen["channel"][i],
            }
        )
        for i in range(count)
    ]


def microseconds(parse: Callable[[], Any], rows: int, runs: int) -> float:
    """The least CPU time of a row."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        parse()
        times.append(time.process_time() - start)
    return min(times) / rows * 1e6


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Prints microseconds a row, and rates against the list."""
    parser = Parser("python -m benchmarks.own_features", __doc__)
    parser.add_argument("--rows", type=int, default=4_096)
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(1)
    learnt = Learnt({name: Rarity.of_counts(dict.fromkeys(v, 9), 1, 200) for name, v in _CATEGORIES.items()})
    cases = {
        "list of 30 numbers": (numbers(arguments.rows, rng), MessageRules(NOW)),
        "12 mixed fields": (
            objects(arguments.rows, rng),
            MessageRules(NOW, roles=SPEC.roles, encoding=Encoding(SPEC, learnt)),
        ),
    }
    costs = {}
    for name, (payloads, rules) in cases.items():
        messages = MessageColumns(payloads)
        parsed = parse_messages(messages, rules)
        if parsed.dead_letters.num_rows:
            raise SystemExit(f"{name}: {parsed.dead_letters.column('errorMessage')[0]}")
        costs[name] = microseconds(
            lambda m=messages, r=rules: parse_messages(m, r), len(payloads), arguments.runs
        )
    first = next(iter(costs.values()))
    print_rows(
        [
            {"messages": name, "microseconds a row": cost, "rate against the list": first / cost}
            for name, cost in costs.items()
        ]
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
