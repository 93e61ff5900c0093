"""Judges account history on card payments: the score with and without it, by scenario of fraud.

    python -m benchmarks.history_quality --data raw_card_transactions.parquet

The data is that of the simulator of "Reproducible Machine Learning for Credit Card Fraud Detection"
(Le Borgne and others, 2022), with the columns event_time, account_id, amount, is_fraud and scenario.
Models learn without labels from the first 92 days, and are judged on the last 30. The statistics and
half-lives were chosen on days 62 to 92, by models that had learnt from the 62 days before them:
`--judge_from 62 --days 92`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score, roc_auc_score

from common.command import command
from common.output import print_rows
from features.declaration import FeatureSpec
from model import evaluation, fitting, torchscript
from model.dataset import from_arrow
from model.metrics import alerts_at

BUDGET: Final = 0.005
FIT_ROWS: Final = 60_000
"""Rows that a model is fitted to, drawn from the training period; 15 % of them stop the training."""
SCENARIOS: Final = {1: "amount over 220", 2: "compromised terminal", 3: "account with amounts times five"}


def history(name: str, statistic: str, half_life: str) -> dict[str, str]:
    """A history feature of the amount."""
    feature = {"name": name, "kind": "history", "statistic": statistic, "of": "amount", "by": "account"}
    return feature | {"half_life": half_life}


PLAIN: Final[list[dict[str, str]]] = [
    {"name": "amount", "kind": "number"},
    {"name": "hour", "kind": "time_of_day", "timezone": "UTC"},
]
SPECS: Final = {
    "with history": [
        PLAIN[0],
        history("amount_level", "deviation", "90d"),
        history("amount_level_fortnight", "deviation", "15d"),
    ],
    "without history": PLAIN,
}


@command
def main() -> None:
    """Prints a table of figures, the mean and the standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="../shared/data/raw_card_transactions.parquet", metavar="FILE")
    parser.add_argument("--judge_from", type=int, default=92, metavar="DAY")
    parser.add_argument("--days", type=int, default=122, metavar="DAY", help="the day after the last judged")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    args = parser.parse_args()
    table = pq.read_table(args.data)
    micros = table["event_time"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    day = (micros - micros.min()) // 86_400_000_000
    is_train, is_judged = day < args.judge_from, (day >= args.judge_from) & (day < args.days)
    scenario = table["scenario"].to_numpy()[is_judged]
    rows = []
    for name, features in SPECS.items():
        spec = FeatureSpec.from_json({"label": "is_fraud", "features": features})
        dataset = from_arrow(table, args.data, "", spec)
        reports = []
        for seed in range(args.seeds):
            values = scores(dataset.features, is_train, is_judged, spec, seed, args.epochs)
            reports.append(figures(values, scenario))
            print(f"{name}, seed {seed}: {reports[-1]}", file=sys.stderr, flush=True)
        rows.append({"score": name} | spread(reports))
    amounts = table["amount"].to_numpy()[is_judged]
    rows.append({"score": "the amount alone"} | spread([figures(amounts, scenario)]))
    counts = {SCENARIOS.get(int(k), "normal"): int((scenario == k).sum()) for k in np.unique(scenario)}
    print(f"Days {args.judge_from} to {args.days}: {counts}\n")
    for measure in rows[0]:
        if measure != "score":
            print_rows([{measure: row["score"], "": row[measure]} for row in rows])
            print()


def scores(
    inputs: npt.NDArray[np.float32],
    is_train: npt.NDArray[np.bool_],
    is_judged: npt.NDArray[np.bool_],
    spec: FeatureSpec,
    seed: int,
    epochs: int,
) -> npt.NDArray[np.float64]:
    """Fits a model to a sample of the training period, without labels, and scores the judged rows."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.flatnonzero(is_train), FIT_ROWS, replace=False)
    held_out, fitted = np.split(rows, [FIT_ROWS * 15 // 100])
    options = fitting.TrainingOptions(seed=seed, epochs=epochs, patience=5, batch_size=512)
    options = dataclasses.replace(options.suited_to(labelled=False, spec=spec))
    network = fitting.fit(inputs[fitted], inputs[held_out], options, progress=False, spec=spec).network
    return evaluation.anomaly_scores(torchscript.trace(network), inputs[is_judged])


def figures(values: npt.NDArray[Any], scenario: npt.NDArray[Any]) -> dict[str, float]:
    """Average precision of each scenario against normals, and recall at two thresholds of one budget.

    One threshold alerts BUDGET of the normals, the other BUDGET of all transactions.
    """
    is_normal = scenario == 0
    result = {}
    for key, text in SCENARIOS.items():
        rows = is_normal | (scenario == key)
        result[f"average precision, {text}"] = average_precision_score(scenario[rows] == key, values[rows])
    result["average precision, all frauds"] = average_precision_score(~is_normal, values)
    result["AUROC, all frauds"] = roc_auc_score(~is_normal, values)
    for base, rows in (("normals", is_normal), ("all transactions", np.ones(len(values), bool))):
        threshold = np.quantile(values[rows], 1 - BUDGET)
        for key, text in SCENARIOS.items():
            share = float((values[scenario == key] > threshold).mean())
            result[f"recall at {100 * BUDGET:g} % of {base}, {text}"] = share
    labels = (~is_normal).astype(np.int8)
    _, precision = alerts_at(values, labels, BUDGET, float(labels.mean()))
    result[f"precision at {100 * BUDGET:g} % of all transactions"] = precision
    return result


def spread(reports: list[dict[str, float]]) -> dict[str, str]:
    """Mean and standard deviation over the seeds, as text."""
    texts = {}
    for key in reports[0]:
        values = [report[key] for report in reports]
        texts[key] = f"{np.mean(values):.3f}"
        if len(values) > 1:
            texts[key] += f" ± {np.std(values, ddof=1):.3f}"
    return texts


if __name__ == "__main__":
    main()
