"""Thresholds from the scores that a model gave live, for the alert budgets of the training."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from google.api_core.exceptions import BadRequest
from google.cloud import bigquery

from common import clients, google
from common.command import CommandError
from common.names import DATASET, MODEL
from common.options import option
from common.output import print_rows
from common.values import moment
from model import artifact
from model.manifest import Manifest
from model.places import place
from model.thresholds import ALERT_BUDGETS, ScoreQuantiles, calibrate
from operations import query

LEAST_ALERTS: Final = 20
"""Alerts of the rarest severity that the scores must have: a threshold on fewer is chance."""
_STEP: Final = 0.001
"""Relative width of a bin of scores, which bounds the error of a threshold."""
_SMALLEST: Final = 1e-9


@dataclass(frozen=True)
class RecalibrateOptions:
    """The scores, the model that gave them, and the place of the new one."""

    dataset: str = option(type=DATASET, metavar="PROJECT.DATASET", help="Example: my-project.anomaly")
    model: str = option(metavar="DIR", help="artifact of the model, local or gs://. It is not changed")
    output: str = option(
        metavar="DIR", help="another directory for the model with the new thresholds, local or gs://"
    )
    since: dt.datetime | None = option(
        None,
        type=moment,
        metavar="WHEN",
        help="earliest event time of the scores: 24h, 7d, or 2026-03-01T12:00:00Z (default: 7d)",
    )
    model_version: str | None = option(
        None,
        type=MODEL,
        metavar="VERSION",
        help="of the new artifact (default: the present one, -r, and the date and time)",
    )


def score_bins(
    dataset: str, since: dt.datetime, version: str
) -> tuple[str, list[bigquery.ScalarQueryParameter]]:
    """Makes the query of how many transactions have which score of a model version, in narrow bins.

    Each transaction counts once, by its latest score of this version.
    """
    statement = f"""\
WITH latest AS (
  SELECT anomaly_score
  FROM `{dataset}.scores`
  WHERE event_time >= TIMESTAMP '{query.timestamp(since)}' AND model_version = @version
  QUALIFY ROW_NUMBER() OVER (
    PARTITION BY transaction_id, IF(event_time_derived, NULL, event_time)
    ORDER BY scored_at DESC, event_time DESC
  ) = 1
)
SELECT
  CAST(FLOOR(LN(GREATEST(anomaly_score, {_SMALLEST})) / {math.log1p(_STEP)}) AS INT64) AS bin,
  COUNT(*) AS transactions,
  MIN(anomaly_score) AS least,
  MAX(anomaly_score) AS most
FROM latest
GROUP BY bin
ORDER BY bin"""  # noqa: S608 - the form of the dataset is checked
    return statement, [bigquery.ScalarQueryParameter("version", "STRING", version)]


def quantiles_of(bins: Sequence[Mapping[str, Any]], trained: ScoreQuantiles) -> ScoreQuantiles:
    """Computes the quantile function of binned scores, at the probabilities of the training's.

    >>> bins = [{"transactions": 50, "least": score, "most": score} for score in (1.0, 3.0)]
    >>> quantiles_of(bins, ScoreQuantiles((0.0, 0.4, 1.0), (0.0, 0.0, 0.0))).scores
    (1.0, 1.0, 3.0)
    """
    counts = np.array([each["transactions"] for each in bins], np.float64)
    after = np.cumsum(counts)
    places, scores = [], []
    for before, end, each in zip(after - counts, after, bins, strict=True):
        places += [before, end - 1]
        scores += [each["least"], each["most"]]
    wanted = np.array(trained.probabilities) * (after[-1] - 1)
    values = np.maximum.accumulate(np.interp(wanted, places, scores))
    return ScoreQuantiles(trained.probabilities, tuple(values.tolist()))


def recalibrated_version(version: str, now: dt.datetime) -> str:
    """Makes the version of a recalibrated model; a model that was one already has another time alone.

    >>> recalibrated_version("2026-03-r20260301.101500", dt.datetime(2026, 4, 1, 8, 30))
    '2026-03-r20260401.083000'
    """
    suffix = f"-r{now:%Y%m%d.%H%M%S}"
    return re.sub(r"-r\d{8}\.\d{6}$", "", version)[: MODEL.parts["NAME"].longest - len(suffix)] + suffix


def recalibrated(
    manifest: Manifest, bins: Sequence[Mapping[str, Any]], version: str, note: Mapping[str, Any]
) -> Manifest:
    """Returns the manifest with the thresholds of these scores.

    Args:
      manifest: of the model that gave the scores.
      bins: the rows of `score_bins`.
      version: of the new manifest.
      note: kept in `training`, for whoever asks where the thresholds are from.

    Raises:
      CommandError: there are too few scores for the smallest budget.
    """
    rows = sum(each["transactions"] for each in bins)
    needed = math.ceil(LEAST_ALERTS / min(ALERT_BUDGETS.values()))
    if rows < needed:
        raise CommandError(
            f"expected at least {needed:,} transactions that version {manifest.model_version} scored, for a "
            f"budget of {min(ALERT_BUDGETS.values()):.1%}, got {rows:,}: pass an earlier --since"
        )
    quantiles = quantiles_of(bins, manifest.quantiles)
    return dataclasses.replace(
        manifest,
        model_version=version,
        quantiles=quantiles,
        thresholds=calibrate(quantiles),
        training={**manifest.training, "recalibrated": {**note, "rows": rows}},
    )


def run(options: RecalibrateOptions, endpoint: str | None, form: Any) -> None:
    """Reads the scores, writes the artifact, and prints the thresholds before and after.

    Raises:
      CommandError: there are too few scores, or BigQuery refuses.
      ArtifactError: the model cannot be read, or the new one not be written.
    """
    from model import package  # torch

    found = artifact.read(options.model, copied=True)
    if place(options.output).key == place(options.model).key:
        raise CommandError("--output: expected another directory than --model, which jobs may be reading")
    now, since = dt.datetime.now(dt.UTC), options.since or moment("7d")
    bins = _ask(options.dataset, since, found.manifest.model_version, endpoint)
    version = options.model_version or recalibrated_version(found.manifest.model_version, now)
    note = {"dataset": options.dataset, "since": since.isoformat(), "from": found.manifest.model_version}
    manifest = recalibrated(found.manifest, bins, version, note)
    with TemporaryDirectory() as directory:
        files = [found.model_path]
        # The archive names its version, so that a copy would answer with the old one.
        if artifact.ARCHIVE_FILE in found.manifest.files and package.archive_available():
            made = package.write_archive(
                found.model_path, Path(directory), version, manifest.spec, manifest.learnt
            )
            files.append(made)
        artifact.write(options.output, manifest, files)
    print_rows(thresholds(found.manifest, manifest, bins), form)


def thresholds(
    before: Manifest, after: Manifest, bins: Sequence[Mapping[str, Any]]
) -> list[dict[str, str | float]]:
    """Returns the thresholds before and after, each with the share of the live scores that reach it."""

    def percent(threshold: float) -> float:
        reached = sum(each["transactions"] for each in bins if each["most"] >= threshold)
        return round(100 * reached / sum(each["transactions"] for each in bins), 3)

    return [
        {
            "severity": severity,
            "budget_percent": 100 * budget,
            "threshold_before": before.thresholds[severity],
            "alert_percent_before": percent(before.thresholds[severity]),
            "threshold": after.thresholds[severity],
            "alert_percent": percent(after.thresholds[severity]),
            "model_version": after.model_version,
        }
        for severity, budget in ALERT_BUDGETS.items()
    ]


def _ask(dataset: str, since: dt.datetime, version: str, endpoint: str | None) -> list[dict[str, Any]]:
    client = None
    statement, parameters = score_bins(dataset, since, version)
    try:
        client = clients.BigQueryEndpoints(endpoint).client(dataset.rpartition(".")[0])
        job = query.start(client, statement, bigquery.QueryJobConfig(query_parameters=parameters))
        return [dict(row.items()) for row in job.result(retry=query.RETRY)]
    except (*google.ERRORS, ValueError) as error:
        lacking = (
            query.outdated(client, dataset, endpoint) if client and isinstance(error, BadRequest) else None
        )
        raise CommandError(lacking or query.explain(error, dataset, endpoint)) from error
