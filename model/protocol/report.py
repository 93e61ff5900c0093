"""Shows the report of the protocol: tables of paired differences, and the worst splits by their normals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from common.output import print_rows, safe_text
from model.outputs import ANOMALY_SCORE
from model.protocol.statistics import METRICS, TUNED, Paired

WORST_SPLITS: Final = 5
COSTLY_NORMALS: Final = 10
NORMALS_SHOWN: Final = 3
USUAL: Final = (("Gaussian mixture", "n_components 20"), ("MCD", "support_fraction 0.99"))
"""Settings that stand in the table beside the tuned ones."""
EXPLANATION: Final = (
    "difference: anomaly_score minus the other on the same split, with the deviation over the splits.\n"
    "interval: 95 %, by the corrected resampled t, because splits share rows.\n"
    "wins: splits in which anomaly_score is better; a tie counts half.\n"
    "tuned: labelled validation rows, neither fitted nor judged, choose the setting in each split."
)


def figure_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes a row a kind of split, score and setting, of plain numbers."""
    rows = []
    for kind, summary in report["kinds"].items():
        for entry in summary["scores"]:
            row = {
                "by": kind,
                "splits": summary["splits"],
                "score": entry["name"],
                "setting": entry["setting"],
            }
            for metric in METRICS:
                figures = entry[metric]
                row |= {metric: figures["mean"], f"{metric}_std": figures["spread"]}
                pair = figures.get("difference", {})
                row |= {f"{metric}_difference_{name}": pair.get(name) for name in Paired._fields}
            rows.append(row)
    return rows


def print_report(report: Mapping[str, Any]) -> None:
    """Prints the report for people."""
    for kind, summary in report["kinds"].items():
        rows, frauds = summary["rows"], summary["frauds"]
        span = " to ".join(str(number) for number in sorted({min(frauds), max(frauds)}))
        how = "the first part trains, the rest is judged" if kind == "time" else "drawn at random"
        print(
            f"{summary['splits']} splits by {kind}, {how}: {rows['train']:,.0f} normals train, "
            f"{rows['judged']:,.0f} rows with {span} frauds are judged, "
            f"weighted to {100 * report['prevalence']:.3f} % fraud\n"
        )
        print_rows(list(_table(summary)))
        for name, reason in summary["left_out"].items():
            print(f"{name} cannot run on this data and is left out: {reason}")
        for name, spread in summary["spread_by_seed"].items():
            print(
                f"Deviation by seed on the same split, {name}: average precision "
                f"{spread['average_precision']:.3f}, AUROC {spread['auroc']:.3f}"
            )
        print(f"\nThe worst splits by {kind}, and the normals on top of them\n")
        for line in _worst(summary):
            print(line)
        print(f"\nNormals that cost the most average precision, over all splits by {kind}\n")
        print_rows(_costly(summary))
        print()
    print(EXPLANATION)


def _table(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a row for each tuned baseline, for what has no setting, and for the usual settings."""
    for entry in summary["scores"]:
        if entry["setting"] in ("", TUNED) or (entry["name"], entry["setting"]) in USUAL:
            name = f"{entry['name']}, {entry['setting']}" if entry["setting"] else entry["name"]
            row = {"score": name}
            for metric in METRICS:
                row |= _cells(entry[metric], metric, summary["splits"])
            yield row


def _cells(figures: Mapping[str, Any], metric: str, splits: int) -> dict[str, str]:
    short, pair = {"average_precision": "AP", "auroc": "AUROC"}[metric], figures.get("difference")
    return {
        metric: f"{figures['mean']:.3f} ± {figures['spread']:.3f}",
        f"{short} difference": f"{pair['mean']:+.3f} ± {pair['spread']:.3f}" if pair else "-",
        f"{short} interval": f"{pair['low']:+.3f} to {pair['high']:+.3f}" if pair else "-",
        f"{short} wins": f"{pair['wins'] * splits:g} of {splits}" if pair else "-",
    }


def _worst(summary: Mapping[str, Any]) -> Iterator[str]:
    by_precision = sorted(summary["by_split"], key=lambda split: _own(split)["average_precision"])
    for split in by_precision[:WORST_SPLITS]:
        own = _own(split)
        name, best = max(split["figures"].items(), key=lambda item: item[1]["average_precision"])
        cut = f", cut at {100 * split['cut']:.0f} % of the rows" if split["cut"] else ""
        best_text = "" if name == ANOMALY_SCORE else f"; the best is {name}, {best['average_precision']:.3f}"
        yield (
            f"split {split['number']}{cut}: {split['frauds']} frauds, average precision "
            f"{own['average_precision']:.3f}, AUROC {own['auroc']:.3f}{best_text}"
        )
        for normal in split["top_normals"][:NORMALS_SHOWN]:
            yield (
                f"  row {normal['row']}: place {normal['place']}, score {normal['score']:,.4g}, above "
                f"{100 * normal['frauds_below']:.0f} % of the frauds, costs {normal['costs']:.3f}; "
                f"{100 * normal['frauds_nearest']:.0f} % of its nearest rows are frauds"
            )
            yield f"    {_features(normal)}"


def _own(split: Mapping[str, Any]) -> Mapping[str, float]:
    figures: Mapping[str, float] = split["figures"][ANOMALY_SCORE]
    return figures


def _features(normal: Mapping[str, Any]) -> str:
    texts = []
    for feature in normal["features"]:
        value, (low, high) = feature["value"], feature["usual"]
        shown = (
            f"{value:.4g}, usual {low:.3g} to {high:.3g}" if isinstance(value, float) else safe_text(value)
        )
        texts.append(f"{feature['name']} ({shown}) {100 * feature['share']:.0f} %")
    return "; ".join(texts)


def _costly(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes a row a normal that stands on top of splits, the most costly first."""
    by_row: dict[int, list[Mapping[str, Any]]] = {}
    for split in summary["by_split"]:
        for normal in split["top_normals"]:
            if normal["costs"] > 0:
                by_row.setdefault(normal["row"], []).append(normal)
    costs = {row: sum(normal["costs"] for normal in normals) for row, normals in by_row.items()}
    rows = []
    for row in sorted(costs, key=lambda row: -costs[row])[:COSTLY_NORMALS]:
        highest = max(by_row[row], key=lambda normal: normal["costs"])
        rows.append(
            {
                "row": row,
                "splits": len(by_row[row]),
                "costs_at_most": f"{highest['costs']:.3f}",
                "frauds_below": f"{100 * highest['frauds_below']:.0f} %",
                "frauds_nearest": f"{100 * highest['frauds_nearest']:.0f} %",
                "leading_features": _features(highest),
            }
        )
    return rows
