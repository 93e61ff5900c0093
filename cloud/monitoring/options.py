"""Options of the dashboard and the alert policies: who is told, and of what."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from common.names import CHANNEL, JOB
from common.options import OptionError, option
from common.values import SHARE, Number, duration
from model.thresholds import ALERT_BUDGETS

STREAM_JOB: Final = "transaction-anomaly-streaming"
"""The name of the streaming job, where a launch names no other."""
LEAST_WINDOW: Final = dt.timedelta(minutes=10)
"""Counters are reported every minute and up to four minutes late: a shorter window is empty by chance."""


@dataclass(frozen=True, kw_only=True)
class MonitoringOptions:
    """The parts that are made in Cloud Monitoring, and the limits of the alert policies."""

    monitoring: bool = option(
        False, action="store_true", help="also a dashboard and alert policies of the streaming job"
    )
    notify: tuple[str, ...] = option(
        (),
        type=CHANNEL,
        metavar="CHANNEL",
        action="append",
        help="notification channel of the alert policies; may be repeated. `gcloud beta monitoring channels "
        "list` shows them. Example: projects/my-project/notificationChannels/1234567890",
    )
    job_name: str = option(
        STREAM_JOB, type=JOB, metavar="NAME", help="the streaming job that is watched (default: %(default)s)"
    )
    max_backlog_age: dt.timedelta = option(
        dt.timedelta(minutes=5),
        type=duration,
        metavar="DURATION",
        help="age of the oldest message that is not acknowledged (default: 5m)",
    )
    max_data_age: dt.timedelta = option(
        dt.timedelta(minutes=10),
        type=duration,
        metavar="DURATION",
        help="age up to which everything is processed: the watermark's (default: 10m)",
    )
    no_data_after: dt.timedelta = option(
        dt.timedelta(minutes=30),
        type=duration,
        metavar="DURATION",
        help="time without any transaction; longer than the quietest time of the feed (default: 30m)",
    )
    max_dead_letter_share: float = option(
        0.01, type=SHARE, metavar="SHARE", help="share of dead letters in 15 minutes (default: %(default)s)"
    )
    alert_budget: float = option(
        ALERT_BUDGETS["medium"],
        type=SHARE,
        metavar="SHARE",
        help="share of alerts that the thresholds were calibrated for; three times as many in an hour, or a "
        "third, is reported (default: %(default)s)",
    )
    max_out_of_range: float = option(
        0.1,
        type=Number(0, whole=False),
        metavar="VALUES",
        help="values outside the range of the training, per transaction, in an hour (default: %(default)s)",
    )

    def __post_init__(self) -> None:
        if self.notify and not self.monitoring:
            raise OptionError("--notify: expected --monitoring with it, which makes the alert policies")
        if self.no_data_after < LEAST_WINDOW:
            raise OptionError(
                f"--no_data_after: expected at least {LEAST_WINDOW.seconds // 60}m, for counters come up to "
                f"five minutes late, got {self.no_data_after.total_seconds():g}s"
            )
        if not self.alert_budget:
            raise OptionError("--alert_budget: expected a share above 0, got 0")
