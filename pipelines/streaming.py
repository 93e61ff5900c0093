"""The streaming pipeline: transactions from Pub/Sub, scored as they come."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.direct.direct_runner import DirectPipelineResult
from apache_beam.runners.runner import PipelineResult, PipelineState

from common.command import Parser, command
from common.names import SUBSCRIPTION, TOPIC
from common.options import OptionError, add_options, group, option
from common.values import at_least, duration, pause
from model.artifact import Manifest
from pipelines import lookups, progress, record, wiring
from pipelines.options import RequiredTableOptions, StreamDetectionOptions, parse_options
from transforms.cooldown import Cooldown
from transforms.gather import BatchMessages
from transforms.parse import Parse
from transforms.sinks import PublishMessages, PublishRows

LOCAL_RUNNER: Final = "local.runner.LocalStreamingRunner"
"""Runs a stream on this machine when no --runner is given; see docs/local-stack.md."""

EXAMPLES: Final = """
  eval "$(anomaly local up)"   # on this machine: Pub/Sub and BigQuery without a Google account
  anomaly resources create --project=local-project --emulators
  anomaly streaming \\
      --subscription=projects/local-project/subscriptions/transactions-pipeline \\
      --model=out/model --output_dataset=local-project.anomaly

  anomaly streaming \\
      --subscription=projects/my-project/subscriptions/transactions \\
      --model=gs://my-bucket/model --output_dataset=my-project.anomaly \\
      --alert_topic=projects/my-project/topics/alerts \\
      --runner=DataflowRunner --project=my-project --region=europe-west1 \\
      --temp_location=gs://my-bucket/tmp

Flags that are not listed here go to Beam: --runner, --project, --region, --temp_location and so on.

exit status: 0 ended in good order; 1 failed; 2 wrong options; 130 ended by Ctrl-C, 143 by SIGTERM
"""


@dataclass(frozen=True)
class StreamSource:
    """The messages to score, and how they are gathered.

    Raises:
      OptionError: there is not exactly one source.
    """

    subscription: str | None = option(
        None,
        type=SUBSCRIPTION,
        metavar="SUBSCRIPTION",
        help="read from this subscription. Example: projects/my-project/subscriptions/transactions",
    )
    topic: str | None = option(
        None,
        type=TOPIC,
        metavar="TOPIC",
        help="read from this topic, through a subscription that lives as long as the job; messages published "
        "before it starts are not seen. Example: projects/my-project/topics/transactions",
    )
    event_time_attribute: str | None = option(
        None,
        metavar="NAME",
        help="message attribute with the event time (RFC 3339, or milliseconds since the epoch), which then "
        "goes before the payload's event_time. Example: event_time",
    )
    batch_rows: int = option(
        1024,
        type=at_least(1),
        metavar="N",
        help="the most messages that are scored at once; 8 MiB of messages are also enough (default: "
        "%(default)s)",
    )
    batch_millis: int = option(
        0,
        type=at_least(0),
        metavar="N",
        help="how long a message may wait for others; 0 scores each bundle at once: the lowest latency. On "
        "Dataflow, where streaming bundles are small, 50 lets one call of the model and one append serve "
        "many of them. In return the messages pass through Dataflow's state, and gathering and parsing take "
        "1.1 to 1.4 times the CPU, the more the smaller the bundles (default: %(default)s)",
    )

    def __post_init__(self) -> None:
        if (self.subscription is None) == (self.topic is None):
            raise OptionError("expected one of --subscription and --topic")


@dataclass(frozen=True, kw_only=True)
class StreamingOptions(wiring.JobOptions):
    """The options of the streaming pipeline.

    It writes no files: a stream has no end, and a file is complete at the end.
    """

    source: StreamSource = group("source (one of --subscription and --topic)")
    detection: StreamDetectionOptions = group("model")
    tables: RequiredTableOptions = group("sinks")
    alert_topic: str | None = option(
        None,
        type=TOPIC,
        metavar="TOPIC",
        help="publish each alert as JSON to this topic. Example: projects/my-project/topics/alerts",
    )
    alert_cooldown: str | None = option(
        None,
        type=pause,
        metavar="DURATION",
        help="after a message about an account, publish none about it for so long, unless the severity is "
        "higher; the next message says how many alerts were suppressed. The table has all. Example: 10m",
    )
    max_alert_messages_per_minute: int = option(
        0,
        type=at_least(0),
        metavar="N",
        help="publish at most so many messages a minute, over all workers, and one more that says so; the "
        "table has all alerts. 0 for any number. Example: 60 (default: %(default)s)",
    )
    scores_topic: str | None = option(
        None,
        type=TOPIC,
        metavar="TOPIC",
        help="publish each scored row as JSON to this topic; Pub/Sub bills every row. "
        "Example: projects/my-project/topics/scores",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quiets and not self.alert_topic:
            raise OptionError(
                "--alert_cooldown and --max_alert_messages_per_minute: expected with --alert_topic, whose "
                "messages they choose; got none"
            )

    @property
    def quiets(self) -> bool:
        """True where some alerts get no message."""
        return bool(self.alert_cooldown or self.max_alert_messages_per_minute)

    def cooldown(self) -> Cooldown:
        """Makes the transform that chooses the alerts with a message."""
        seconds = duration(self.alert_cooldown).total_seconds() if self.alert_cooldown else 0.0
        return Cooldown(seconds, self.max_alert_messages_per_minute)


def parser() -> Parser:
    """Makes the parser of the command line."""
    flags = Parser("anomaly streaming", __doc__, EXAMPLES)
    add_options(flags, StreamingOptions)
    return flags


def parse(argv: Sequence[str] | None = None) -> tuple[StreamingOptions, PipelineOptions]:
    """Reads a command line: the options of this pipeline, and Beam's.

    Raises:
      OptionError: the options do not fit.
    """
    return parse_options(parser(), StreamingOptions, argv)


def build(pipeline: beam.Pipeline, options: StreamingOptions, manifest: Manifest) -> None:
    """messages -> batches -> detect -> tables, topics."""
    source = options.source
    rules = options.messages.rules(manifest, event_time_attribute=source.event_time_attribute)
    # No timestamp_attribute here: the source would fail for ever on a message whose attribute is malformed.
    # Parse reads it instead, and such a message is one dead letter.
    messages = pipeline | "Read" >> beam.io.ReadFromPubSub(
        topic=source.topic, subscription=source.subscription, with_attributes=True
    )
    batches = messages | "Batch" >> BatchMessages(source.batch_rows, source.batch_millis)
    detect = wiring.detect(Parse(rules), options, manifest, streaming=True, batch_rows=source.batch_rows)
    detected = batches | "Detect" >> detect
    if options.alert_topic and options.quiets:
        quiet = detected.alerts | "Quiet" >> options.cooldown()
        detected = detected._replace(alerts=quiet.alerts)
        _ = quiet.messages | "Publish alerts" >> PublishMessages(options.alert_topic)
    wiring.write_tables(detected, options, streaming=True)
    if options.alert_topic and not options.quiets:
        _ = detected.alerts | "Publish alerts" >> PublishRows(options.alert_topic, apart=True)
    if options.scores_topic:
        _ = detected.scores | "Publish scores" >> PublishRows(options.scores_topic)


def check(options: StreamingOptions, beam_options: PipelineOptions) -> None:
    """Checks the options that need neither the model nor Google, so that a launch refuses by it as well.

    Raises:
      OptionError: the options do not fit.
    """
    wiring.check(options, beam_options)
    if beam_options.view_as(StandardOptions).runner == "FnApiRunner":
        raise OptionError(f"--runner=FnApiRunner reads no Pub/Sub; use DataflowRunner, or {LOCAL_RUNNER}")


def run(
    argv: Sequence[str] | None = None, runner: beam.runners.PipelineRunner | None = None
) -> PipelineResult:
    """Checks the options, sets up the tables, and starts the pipeline.

    Args:
      argv: command-line arguments; those of the process when None.
      runner: replaces --runner, for tests and the local stack.

    Raises:
      OptionError: the options do not fit, or something that they name is not there.
    """
    options, beam_options = parse(argv)
    passed = record.passed(beam_options)
    check(options, beam_options)
    runner_name = wiring.set_runner(beam_options, LOCAL_RUNNER)
    manifest = options.detection.manifest()
    options = wiring.with_environment(options, beam_options)
    if runner_name == LOCAL_RUNNER:  # a job finds out late what is not there
        for flag, name in (
            ("--subscription", options.source.subscription),
            ("--topic", options.source.topic),
            ("--alert_topic", options.alert_topic),
            ("--scores_topic", options.scores_topic),
        ):
            if name:
                lookups.check_pubsub(flag, name)
    wiring.create_tables(options, beam_options)
    beam_options.view_as(StandardOptions).streaming = True
    pipeline = beam.Pipeline(runner=runner, options=beam_options)
    build(pipeline, options, manifest)
    record.attach(pipeline, options, passed)
    return pipeline.run()


class Stopped(KeyboardInterrupt):
    """Stands for SIGTERM, which ends a job on this machine as Ctrl-C does."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: starts the job, and stays with it when it runs on this machine.

    Ctrl-C and SIGTERM end a job on this machine after the bundle in progress, or some seconds later where a
    bundle hangs; messages that were not acknowledged come again. A job on Dataflow goes on: `anomaly launch
    cancel` ends it.

    Returns:
      The exit status: 0 for a job that ended in good order, 1 for one that failed, 130 when Ctrl-C ended it,
      143 when SIGTERM did.

    Raises:
      Exception: the job failed; Python then also ends with 1.
    """
    wiring.configure_logging()
    signal.signal(signal.SIGTERM, _stop)
    result: PipelineResult | None = None
    try:
        result = run(argv)
        # A job on Dataflow has a page that shows it, and each look at its counters would be a request.
        is_here = isinstance(result, DirectPipelineResult)
        with progress.shown(result) if is_here else contextlib.nullcontext():
            state = result.wait_until_finish()
    except KeyboardInterrupt as stopped:
        if result is not None and result.state == PipelineState.FAILED:
            return 1
        return 128 + (signal.SIGTERM if isinstance(stopped, Stopped) else signal.SIGINT)
    return 1 if state == PipelineState.FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
