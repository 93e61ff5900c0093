"""Scores summed up by windows of event time: how many, alerts, mean and quantiles of score and latency.

A bundle is summed up by columns first, so that a few small summaries a bundle pass the shuffle, and no rows.
Beam adds them up by window, and lets each window go several times: early, at its end, and when late rows have
come. Each such pane holds the whole window, and the view keeps the last.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import PickleCoder, registry
from apache_beam.transforms.trigger import (
    AccumulationMode,
    AfterCount,
    AfterProcessingTime,
    AfterWatermark,
)
from apache_beam.transforms.window import FixedWindows, GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

import transforms.coder  # noqa: F401  registers the coder of record batches
from model.thresholds import SEVERITIES
from transforms import metrics
from transforms.schema import SCORE_WINDOWS
from transforms.sketch import Sketch, centres

LATENESS_SECONDS: Final = 86_400
"""Rows whose window ended longer ago are scored and stored, and counted by no window."""
TOO_LATE: Final = "window_rows_too_late"
"""Counts them."""
_PANE_SECONDS: Final = 20
"""Seconds that rows wait for others before a pane that comes before the end of the window."""
_SLACK_SECONDS: Final = 600
"""Beam drops what is late by more than LATENESS_SECONDS and this, by a clock that lags behind ours."""
_HELD_ROWS: Final = 256 * 1024
_MERGED_AT: Final = 64
_QUANTILES: Final = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
_SEVERITIES: Final = pa.array(SEVERITIES, pa.string())


class Summary(NamedTuple):
    """A summary of scored rows.

    Attributes:
      severities: how many rows each severity has, in the order of SEVERITIES.
      score: of the anomaly scores.
      latency: of the milliseconds from publication to score, where the publication is known.
    """

    severities: npt.NDArray[np.int64]
    score: Sketch
    latency: Sketch

    @classmethod
    def merged(cls, summaries: Sequence[Summary]) -> Summary:
        """Returns the summary of all rows of the summaries, of which there is at least one."""
        return cls(
            np.sum([each.severities for each in summaries], axis=0),
            Sketch.merged([each.score for each in summaries]),
            Sketch.merged([each.latency for each in summaries]),
        )


registry.register_coder(Summary, PickleCoder)

Key = tuple[str, str]
"""The run that counts, and the version of the model."""


def summaries(scores: pa.RecordBatch, seconds: int) -> dict[tuple[str, int], Summary]:
    """Sums up a SCORES batch by version of the model and window.

    Args:
      scores: the batch.
      seconds: the length of a window.

    Returns:
      The summaries by version and start of the window, in seconds since the epoch.
    """
    numbers = scores["event_time"].cast(pa.int64()).to_numpy() // (seconds * 1_000_000)
    versions = scores["model_version"].dictionary_encode()
    # One number for version and window: numpy sorts those several times faster than pairs.
    known = max(1, len(versions.dictionary))
    groups, places = np.unique(numbers * known + versions.indices.to_numpy(), return_inverse=True)
    values = scores["anomaly_score"].to_numpy()
    severities = pc.index_in(scores["severity"], _SEVERITIES).to_numpy()
    waits = pc.subtract(scores["scored_at"], scores["publish_time"]).cast(pa.int64()).cast(pa.float64())
    latency = waits.to_numpy(zero_copy_only=False) / 1000  # NaN where it is not known
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(np.bincount(places, minlength=len(groups)))
    found = {}
    for group, rows in zip(groups.tolist(), np.split(order, ends[:-1]), strict=True):
        waited = latency[rows]
        number, version = divmod(group, known)
        found[versions.dictionary[version].as_py(), number * seconds] = Summary(
            np.bincount(severities[rows], minlength=len(SEVERITIES)),
            Sketch.of(values[rows]),
            Sketch.of(waited[~np.isnan(waited)]),
        )
    return found


@dataclass
class CountWindows(beam.PTransform):
    """Sums scores up by windows of event time.

    SCORES batch  ->  SCORE_WINDOWS batch

    A row that is delivered twice counts twice, as it does in the table of scores; the view of the scores
    tells copies apart, and this does not.

    Attributes:
      seconds: the length of a window.
      run_id: of this launch. A job that takes over from another counts for itself: the counts of all runs add
        up to those of the window.
      streaming: whether the pipeline is.
    """

    seconds: int
    run_id: str
    streaming: bool = False

    def expand(self, scores: beam.PCollection) -> beam.PCollection:
        """Scores to summaries by bundle, then by window, then to rows."""
        lateness = LATENESS_SECONDS if self.streaming else None
        sum_up = beam.ParDo(_SumUpFn(self.seconds, self.run_id, lateness))
        summed = scores | "Sum up" >> sum_up.with_output_types(tuple[Key, Summary])
        windows = summed | "Windows" >> (self._panes() if self.streaming else self._once())
        merged = windows | "Merge" >> beam.CombinePerKey(_MergeFn()).with_output_types(tuple[Key, Summary])
        rows = merged | "Row" >> beam.ParDo(_RowFn(self.seconds)) | beam.WindowInto(GlobalWindows())
        return rows | "Batch" >> beam.ParDo(_BatchFn()).with_output_types(pa.RecordBatch)

    def _once(self) -> beam.WindowInto:
        return beam.WindowInto(FixedWindows(self.seconds))

    def _panes(self) -> beam.WindowInto:
        return beam.WindowInto(
            FixedWindows(self.seconds),
            # Beam's direct runner, on which the local one stands, cannot wait for the clock behind a window's
            # end: each bundle with late rows makes a pane.
            trigger=AfterWatermark(early=AfterProcessingTime(_PANE_SECONDS), late=AfterCount(1)),
            accumulation_mode=AccumulationMode.ACCUMULATING,
            allowed_lateness=LATENESS_SECONDS + _SLACK_SECONDS,
        )


class _SumUpFn(beam.DoFn):
    """SCORES batches of a bundle in; a summary a window out, at the time of its window."""

    def __init__(self, seconds: int, run_id: str, lateness: int | None) -> None:
        self._seconds = seconds
        self._run_id = run_id
        self._lateness = lateness
        self._too_late = metrics.counter(TOO_LATE)

    def start_bundle(self) -> None:
        """Drops the rows of a failed bundle."""
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def process(self, scores: pa.RecordBatch) -> Iterable[Any]:
        """Holds the columns that are summed up."""
        self._held.append(scores.select(_COLUMNS))
        self._rows += scores.num_rows
        return list(self._flush()) if self._rows >= _HELD_ROWS else ()

    def finish_bundle(self) -> Iterable[Any]:
        """Sums up the rest."""
        return list(self._flush())

    def _flush(self) -> Iterator[WindowedValue]:
        if not self._held:
            return
        found = summaries(pa.concat_batches(self._held), self._seconds)
        self._held, self._rows = [], 0
        for (version, start), summary in found.items():
            if self._lateness is not None and start + self._seconds + self._lateness < time.time():
                self._too_late.inc(summary.score.rows)
                continue
            element = ((self._run_id, version), summary)
            yield WindowedValue(element, Timestamp(start), (GlobalWindow(),))


_COLUMNS: Final = ("event_time", "model_version", "anomaly_score", "severity", "scored_at", "publish_time")


class _MergeFn(beam.CombineFn):
    """Adds summaries up. The accumulator is a list, merged when it is long: a merge costs by its calls."""

    def create_accumulator(self) -> list[Summary]:
        """See beam.CombineFn."""
        return []

    def add_input(self, accumulator: list[Summary], summary: Summary) -> list[Summary]:
        """See beam.CombineFn."""
        accumulator.append(summary)
        return self.compact(accumulator) if len(accumulator) >= _MERGED_AT else accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Summary]]) -> list[Summary]:
        """See beam.CombineFn."""
        return self.compact([summary for each in accumulators for summary in each])

    def compact(self, accumulator: list[Summary]) -> list[Summary]:
        """See beam.CombineFn."""
        return [Summary.merged(accumulator)] if accumulator else []

    def extract_output(self, accumulator: list[Summary]) -> Summary:
        """See beam.CombineFn."""
        return Summary.merged(accumulator)


class _RowFn(beam.DoFn):
    """The state of a window in, its row out."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def process(
        self,
        element: tuple[Key, Summary],
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterable[dict[str, Any]]:
        """Makes the row."""
        (run_id, version), summary = element
        yield {
            "window_start": window.start.micros,
            "window_seconds": self._seconds,
            "model_version": version,
            "run_id": run_id,
            "pane": max(0, pane.index),
            "computed_at": time.time_ns() // 1000,
            **window_values(summary),
        }


class _BatchFn(beam.DoFn):
    """Rows of a bundle in, one SCORE_WINDOWS batch out."""

    def start_bundle(self) -> None:
        """Drops the rows of a failed bundle."""
        self._rows: list[dict[str, Any]] = []

    def process(self, row: dict[str, Any]) -> None:
        """Holds the row."""
        self._rows.append(row)

    def finish_bundle(self) -> Iterable[Any]:
        """Lets the rows go."""
        if self._rows:
            batch = pa.RecordBatch.from_pylist(self._rows, SCORE_WINDOWS)
            yield GlobalWindows.windowed_value_at_end_of_window(batch)
        self._rows = []


def window_values(summary: Summary) -> dict[str, Any]:
    """Returns the columns of SCORE_WINDOWS that a summary fills."""
    values: dict[str, Any] = {"transactions": summary.score.rows}
    values |= zip(SEVERITIES[1:], summary.severities[1:].tolist(), strict=True)
    for name, sketch, unit in (("score", summary.score, ""), ("latency", summary.latency, "_ms")):
        values[f"{name}_mean{unit}"] = sketch.mean
        values |= {f"{name}_{text}{unit}": sketch.quantile(share) for text, share in _QUANTILES}
        values[f"{name}_max{unit}"] = sketch.greatest if sketch.rows else None
        pairs = zip(centres(sketch.bins).tolist(), sketch.counts.tolist(), strict=True)
        values[f"{name}_bins"] = [{"value": value, "transactions": count} for value, count in pairs]
    return values
