"""Profiles of the features as rows of a table: what a model saw, beside what it was trained on.

A stream adds samples up in the memory of its workers, and lets them go as one row a feature and minute: no
row and no count passes a shuffle. The rows of all workers add up. A batch job has one row a feature.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa

import transforms.coder  # noqa: F401  registers the coder of record batches
from features.profiles import Counter, Profile
from transforms.schema import FEATURE_PROFILES
from transforms.scores import Scored

SECONDS: Final = 60


@dataclass
class CollectProfiles(beam.PTransform):
    """Counts the samples of scored rows.

    Scored  ->  FEATURE_PROFILES batch

    In a stream it is a sample and no ledger. A worker that ends loses the counts of at most `seconds`, as a
    bundle does that fails while it lets them go. The id of a profile is that of its rows: one that is stored
    twice is one in the view, also where a bundle with a profile of its own (`seconds` 0) runs again.
    A message that comes again, and a bundle that runs again, count again in a profile with other rows. A
    batch job counts each row once.

    Attributes:
      streaming: whether the pipeline is.
      seconds: between the profiles of a worker, in a stream; 0 lets a profile go with each bundle.
      token: names what a worker has counted for this step.
    """

    streaming: bool = False
    seconds: int = SECONDS
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """Samples to profiles."""
        if self.streaming:
            hold = beam.ParDo(_HoldFn(self.seconds, self.token))
            return scored | "Hold" >> hold.with_output_types(pa.RecordBatch)
        counted = scored | "Count" >> beam.ParDo(_CountFn()).with_output_types(tuple[str, Profile])
        merged = counted | "Merge" >> beam.CombinePerKey(_merged).with_output_types(tuple[str, Profile])
        return merged | "Row" >> beam.Map(_rows).with_output_types(pa.RecordBatch)


class _CountFn(beam.DoFn):
    """The samples of a bundle in, a profile for each model out."""

    def start_bundle(self) -> None:
        """Drops what a failed bundle counted."""
        self._counter = Counter()

    def process(self, scored: Scored) -> None:
        """Adds the samples of a batch."""
        for sample in scored.samples:
            self._counter.add(sample)

    def finish_bundle(self) -> Iterable[Any]:
        """Lets the profiles go."""
        for pair in self._counter.take().items():
            yield beam.transforms.window.GlobalWindows.windowed_value_at_end_of_window(pair)


class Held:
    """Profiles that a process has counted and not let go yet. Threads share it."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._counter = Counter()
        self._slot = -math.inf

    def add(self, profiles: Iterable[Profile], now: float) -> tuple[float, list[Profile]]:
        """Adds profiles; returns those that are due, and the time from which on they were counted."""
        with self._lock:
            if not self._seconds:
                self._counter.merge(profiles)
                return now, list(self._counter.take().values())
            slot, due = now // self._seconds, list[Profile]()
            began = self._slot * self._seconds
            if slot != self._slot:
                due = list(self._counter.take().values())
                self._slot = slot
            self._counter.merge(profiles)
            return began, due


_HELD: Final[dict[str, Held]] = {}


class _HoldFn(_CountFn):
    """The samples of bundles in; one FEATURE_PROFILES batch a process and minute out."""

    def __init__(self, seconds: int, token: str) -> None:
        self._seconds = seconds
        self._token = token

    def setup(self) -> None:
        """Finds what this process holds."""
        self._held = _HELD.setdefault(self._token, Held(self._seconds))

    def finish_bundle(self) -> Iterable[Any]:
        """Adds the bundle up with the others, and lets the minute before go."""
        began, due = self._held.add(self._counter.take().values(), time.time())
        for profile in due:
            batch = profile_rows(profile, int(began * 1_000_000))
            yield beam.transforms.window.GlobalWindows.windowed_value_at_end_of_window(batch)


def _merged(profiles: Iterable[Profile]) -> Profile | None:
    known = [profile for profile in profiles if profile is not None]
    return Profile.merged(known) if known else None


def _rows(pair: tuple[str, Profile]) -> pa.RecordBatch:
    return profile_rows(pair[1], time.time_ns() // 1000)


def profile_rows(profile: Profile, began: int) -> pa.RecordBatch:
    """Makes a FEATURE_PROFILES batch, a row a feature and one for the score.

    Args:
      profile: the counts.
      began: when the first row was counted, in microseconds since the epoch.
    """
    bins = profile.bins
    rows = []
    for place, name in enumerate(bins.names):
        counts = profile.counts[place].tolist()
        ends = [*bins.edges[place].tolist(), None]
        rows.append(
            {
                "profiled_at": began,
                "model_version": profile.version,
                "feature": name,
                "profile_id": f"{profile.digest:032x}",
                "transactions": profile.rows,
                "every": bins.every,
                "outside": counts[0] + counts[-1],
                "missing": int(profile.missing[place]),
                "missing_share": bins.missing.get(name),
                "bins": [
                    {"place": i, "below": end, "transactions": count, "share": share}
                    for i, (end, count, share) in enumerate(
                        zip(ends, counts, bins.shares[place].tolist(), strict=True)
                    )
                ],
            }
        )
    return pa.RecordBatch.from_pylist(rows, FEATURE_PROFILES)
