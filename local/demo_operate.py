"""A stream in operation: another model takes over, the feed changes its unit, `anomaly watch` names it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from common.clients import BigQueryEndpoints
from common.output import print_rows
from local import topics
from local.demo_commands import DemoError, say
from local.endpoints import Endpoints
from local.runner import LocalResult, LocalStreamingRunner, run_until_drained
from model.synthetic.generator import TransactionGenerator
from operations import query, watch
from operations.models import __main__ as models
from pipelines import streaming
from publisher.messages import MessageSource, Outgoing
from publisher.publish import publish
from publisher.pubsub import PubSubTopic
from transforms import metrics

NAME: Final = "operated"
"""Of the topic, and of the dataset."""
MESSAGES: Final = 1_500
"""Of each model: `anomaly watch` judges from 1,000 rows on. They have the whole rhythm of day and night."""
PORTION: Final = 50
PAUSE_SECONDS: Final = 0.2
"""Between two portions, while the stream takes the new model over."""
PATIENCE_SECONDS: Final = 120
CENTS: Final = 100
SHIFTED: Final = "Amount"
"""The feature that `in_cents` moves."""


@dataclass
class OperatedReport:
    """The figures of the stream whose model was replaced.

    Attributes:
      published: messages.
      versions: rows by model version.
      over: the checks of `anomaly watch` that are over their limit.
      seconds: that all of it took.
    """

    published: int = 0
    versions: list[dict[str, Any]] = field(default_factory=list)
    over: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class ShiftingSource:
    """Transactions of the ULB table; `is_shifted` has the amounts come in cents from then on."""

    source: MessageSource
    is_shifted: bool = False

    def take(self, n: int) -> Outgoing:
        """The next messages."""
        taken = self.source.take(n)
        if not self.is_shifted:
            return taken
        return dataclasses.replace(taken, payloads=[in_cents(payload) for payload in taken.payloads])


def in_cents(payload: bytes) -> bytes:
    """Changes the unit of the amount, the last of the 30 numbers.

    >>> in_cents(b'{"features":[1.0,2.5]}')
    b'{"features":[1.0,250.0]}'
    """
    message = orjson.loads(payload)
    message["features"][-1] *= CENTS
    return orjson.dumps(message)


def operate(endpoints: Endpoints, model: Path, following: Path, live: Path, seed: int) -> OperatedReport:
    """Streams, promotes another model while messages come, shifts the feed, and judges the profiles.

    Args:
      endpoints: of the local stack.
      model: artifact of the ULB table, the first model.
      following: artifact of the second one.
      live: directory that the stream reads its model from; it stays, for the stream's workers look at it.
      seed: of the transactions.

    Raises:
      DemoError: rows are missing, a model has scored none, or the shift was not noticed.
    """
    say("Operate: promote another model while the stream runs, then send amounts in cents")
    summary, began = OperatedReport(), time.monotonic()
    topic = topics.create_topic(endpoints.project, NAME)
    subscription = topics.create_subscription(endpoints.project, f"{NAME}-pipeline", topic)
    dataset = f"{endpoints.project}.{NAME}"
    promoted(model, live)
    argv = [f"--subscription={subscription}", f"--model={live}", f"--output_dataset={dataset}"]
    # Each row is counted, and at once: a stream of a few seconds would end before its first minute.
    argv += ["--model_refresh_seconds=1", "--profile_every=1", "--profile_seconds=0"]
    argv += endpoints.pipeline_args()
    print(f"$ anomaly streaming {' '.join(argv)} &", file=sys.stderr, flush=True)
    result = streaming.run(argv, runner=LocalStreamingRunner())
    assert isinstance(result, LocalResult)

    def scored() -> int:
        return metrics.totals(result).get(metrics.ROWS_SCORED, 0)

    def refreshed() -> bool:
        return metrics.totals(result).get(metrics.MODEL_REFRESHES, 0) > 0

    with PubSubTopic(topic) as sink:
        source = ShiftingSource(MessageSource(TransactionGenerator(seed=seed, cycle=MESSAGES)))

        def send(count: int) -> None:
            summary.published += publish(source, sink, count=count).confirmed

        send(MESSAGES)
        _wait(lambda: scored() >= MESSAGES)
        promoted(following, live)
        _wait(refreshed, lambda: send(PORTION))
        source.is_shifted = True
        send(MESSAGES)
    run_until_drained(result, lambda: scored() >= summary.published, timeout=PATIENCE_SECONDS)
    client = BigQueryEndpoints(endpoints.bigquery, endpoints.bigquery_storage).client(endpoints.project)
    summary.versions = query.run(client, query.sql("score_drift", dataset))
    asked = ["--dataset", dataset, "--format", "json", f"--bigquery_endpoint={endpoints.bigquery}"]
    found = orjson.loads(called(watch.main, "watch", *asked, fine=(0, 1)))
    summary.over = [each for each in found if each["status"] == "over"]
    summary.seconds = time.monotonic() - began
    check(summary)
    return summary


def promoted(model: Path, live: Path) -> None:
    """Puts a model in the place that the stream reads."""
    called(models.main, "model", "promote", str(model), "--to", str(live))


def called(
    main: Callable[[Sequence[str]], int], name: str, *arguments: str, fine: Sequence[int] = (0,)
) -> str:
    """Runs a command of this project in this process, shown as a user would type it; returns what it prints.

    Raises:
      DemoError: it ended with a status that is not among the fine ones.
    """
    print(f"$ anomaly {name} {' '.join(arguments)}", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(io.StringIO()) as text:
        status = main(arguments)
    if status not in fine:
        raise DemoError(f"the command ended with {status}; it and its messages are above")
    return text.getvalue()


def check(summary: OperatedReport) -> None:
    """Checks that no row was lost, that both models have scored, and that the shift was noticed.

    Raises:
      DemoError: one of them does not hold.
    """
    rows: Counter[str] = Counter()
    for row in summary.versions:  # one a day and version
        rows[row["model_version"]] += row["transactions"]
    if sum(rows.values()) != summary.published or len(rows) != 2:
        raise DemoError(f"{summary.published} messages were published for two models, scored: {dict(rows)}")
    if SHIFTED not in {each["name"] for each in summary.over}:
        raise DemoError(f"amounts came in cents, and anomaly watch does not name {SHIFTED}")


def print_operated(summary: OperatedReport) -> None:
    """Prints the report for people."""
    print(
        f"\nAnother model, promoted while the stream ran: {summary.published:,} messages, "
        f"each scored once, in {summary.seconds:.0f} s"
    )
    print_rows(summary.versions)
    print("\nThen amounts came in cents: the checks of anomaly watch that are over their limit")
    print_rows(summary.over)


def _wait(is_done: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the stream did not come so far within {PATIENCE_SECONDS} s")
        meanwhile()
        time.sleep(PAUSE_SECONDS)
