"""Options of the history of accounts, and of other keys."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from common.options import OptionError, option
from common.values import at_least, location
from features.declaration import FeatureSpec
from features.history.plan import plans
from features.roles import EPOCH
from transforms.history import BUCKETS, History
from transforms.history_files import HistoryFiles, HistoryFilesError

MOST_BUCKETS = 1024


@dataclass(frozen=True)
class HistoryOptions:
    """The histories that a job begins with, for models with history features."""

    history: str | None = option(
        None,
        type=location,
        metavar="DIR",
        help="directory that `anomaly history build` has written, local or gs://: the histories that the job "
        "begins with, for a model with history features. Events up to the time that it records are scored "
        "and not counted again (default: each account is new)",
    )
    history_buckets: int = option(
        BUCKETS,
        type=at_least(1, MOST_BUCKETS),
        metavar="N",
        help="parts into which accounts are divided by a hash, each with one state: at most so many workers "
        "compute histories at once. A stream keeps the number for ever (default: %(default)s)",
    )

    def transform(
        self, spec: FeatureSpec, streaming: bool, batch_rows: int, lead_seconds: int
    ) -> History | None:
        """Makes the step of the pipeline; None where the model has no history features.

        Args:
          spec: the features of the model.
          streaming: as in `History`.
          batch_rows: the most rows that are scored at once.
          lead_seconds: how far the time of an event may lie ahead.

        Raises:
          OptionError: --history does not fit the model.
        """
        start = self.start(spec)
        if not spec.history:
            return None
        lead = lead_seconds * 1_000_000
        return History(spec, streaming, self.history_buckets, start, batch_rows, lead)

    def start(self, spec: FeatureSpec) -> HistoryFiles | None:
        """Reads the index of --history, if it is given, and checks that it fits the model.

        Raises:
          OptionError: it cannot be read, or is that of other features.
        """
        if self.history is None:
            return None
        try:
            files = HistoryFiles.read(self.history)
            self.check(files, spec)
        except HistoryFilesError as error:
            raise OptionError(f"--history: {error}") from error
        return files

    def check(self, files: HistoryFiles, spec: FeatureSpec) -> None:
        """Checks that histories fit a model, and end before now.

        Raises:
          HistoryFilesError: the model has no history features, or the histories are those of others, or end
            in the future: no event would count until then.
        """
        if not spec.history:
            raise HistoryFilesError("the model of --model has no history features; leave --history out")
        files.check(plans(spec), self.history_buckets)
        until = EPOCH + dt.timedelta(microseconds=files.until)
        if until > dt.datetime.now(dt.UTC):
            raise HistoryFilesError(
                f"{files.directory}: expected histories that end before now, got {until.isoformat()}, and no "
                "event before it would count: build them anew with --until"
            )
