"""The streaming pipeline: transactions from Pub/Sub, scored as they come."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from common import names
from common.command import command
from model.artifact import Manifest
from pipelines import options, wiring
from transforms import remote_options
from transforms.parse import BatchMessages, Parse
from transforms.sinks import PublishAlerts

LOCAL_RUNNER = "local.runner.LocalStreamingRunner"
"""What runs a stream on this machine when no --runner is given; see docs/local-stack.md."""

EXAMPLE = """example:
  python -m pipelines.streaming \\
      --subscription=projects/my-project/subscriptions/transactions \\
      --model=gs://my-bucket/model --output_dataset=my-project.anomaly \\
      --alert_topic=projects/my-project/topics/alerts \\
      --runner=DataflowRunner --project=my-project --region=europe-west1 \\
      --temp_location=gs://my-bucket/tmp

Flags that are not listed here go to Beam: --runner, --project, --region, --temp_location and so on.

exit status: 0 ended in good order; 1 failed; 2 wrong options; 130 ended by Ctrl-C, 143 by SIGTERM
"""


def parser() -> options.OptionsParser:
    """The options of this pipeline, with help."""
    found = options.OptionsParser(prog="python -m pipelines.streaming", description=__doc__, epilog=EXAMPLE)
    group = found.add_argument_group("source (one of --subscription and --topic)")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--subscription",
        type=names.SUBSCRIPTION,
        metavar="SUBSCRIPTION",
        help="read from this subscription. Example: projects/my-project/subscriptions/transactions",
    )
    source.add_argument(
        "--topic",
        type=names.TOPIC,
        metavar="TOPIC",
        help="read from this topic, through a subscription that lives as long as the job; messages published "
        "before it starts are not seen. Example: projects/my-project/topics/transactions",
    )
    group.add_argument(
        "--event_time_attribute",
        metavar="NAME",
        help="message attribute with the event time (RFC 3339, or milliseconds since the epoch), which then "
        "goes before the payload's event_time. Example: event_time",
    )
    group.add_argument(
        "--batch_rows",
        type=options.at_least(1),
        default=1024,
        metavar="N",
        help="the most messages that are scored at once (default: %(default)s)",
    )
    group.add_argument(
        "--batch_millis",
        type=options.at_least(0),
        default=0,
        metavar="N",
        help="how long a message may wait for others; 0 scores each bundle at once: the lowest latency. On "
        "Dataflow, where streaming bundles are small, 50 costs little and raises throughput (default: "
        "%(default)s)",
    )
    found.add_argument(
        "--alert_topic",
        type=names.TOPIC,
        metavar="TOPIC",
        help="publish each alert as JSON to this topic. Example: projects/my-project/topics/alerts",
    )
    options.add_message_arguments(found)
    options.add_model_arguments(found)
    remote_options.add_arguments(found)
    # No files: a stream has no end, and a file is complete at the end.
    options.add_sink_arguments(found, files=False)
    return found


def build(pipeline: beam.Pipeline, args: argparse.Namespace, manifest: Manifest) -> None:
    """messages -> batches -> detect -> tables, alert topic."""
    rules = wiring.message_rules(args, event_time_attribute=args.event_time_attribute)
    # No timestamp_attribute here: the source would fail for ever on a message whose attribute is malformed.
    # Parse reads it instead, and such a message is one dead letter.
    messages = pipeline | "Read" >> beam.io.ReadFromPubSub(
        topic=args.topic, subscription=args.subscription, with_attributes=True
    )
    batches = messages | "Batch" >> BatchMessages(args.batch_rows, args.batch_millis)
    detected = batches | "Detect" >> wiring.detect(Parse(rules), args, manifest)
    wiring.write(detected, args, streaming=True)
    if args.alert_topic:
        _ = detected.alerts | "Publish alerts" >> PublishAlerts(args.alert_topic)


def run(
    argv: Sequence[str] | None = None, runner: beam.runners.PipelineRunner | None = None
) -> PipelineResult:
    """Checks the options, sets up the tables, and starts the pipeline.

    Args:
      argv: command-line arguments; those of the process when None.
      runner: replaces --runner, for tests and the local stack.
    """
    found = parser()
    args, beam_options = found.parse(argv)
    manifest = check(found, args, beam_options)
    wiring.local_endpoints(found, args, beam_options)
    if beam_options.view_as(StandardOptions).runner == LOCAL_RUNNER:
        wiring.check_pubsub(found, args)
    wiring.create_tables(found, args)
    beam_options.view_as(StandardOptions).streaming = True
    pipeline = beam.Pipeline(runner=runner, options=beam_options)
    build(pipeline, args, manifest)
    return pipeline.run()


def check(found: options.OptionsParser, args: argparse.Namespace, beam_options: PipelineOptions) -> Manifest:
    """What argparse alone cannot check; ends the program with a message that says what to do."""
    check_arguments(found, args, beam_options)
    if wiring.default_runner(beam_options, LOCAL_RUNNER) == "FnApiRunner":
        found.error(f"--runner=FnApiRunner reads no Pub/Sub; use DataflowRunner, or {LOCAL_RUNNER}")
    return options.resolve_model(found, args)


def check_arguments(
    found: options.OptionsParser, args: argparse.Namespace, beam_options: PipelineOptions
) -> None:
    """The part of `check` that needs no model, so that a launch refuses by it too."""
    options.check_thresholds(found, args)
    remote_options.validate_arguments(found, args)
    wiring.check_write_method(found, args, beam_options)


class Stopped(KeyboardInterrupt):
    """SIGTERM, which ends a job on this machine as Ctrl-C does."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: starts the job, and stays with it when it runs on this machine.

    Ctrl-C and SIGTERM end a job on this machine after the bundle in progress, or some seconds later where a
    bundle hangs; what was not acknowledged comes again. A job on Dataflow goes on: cloud.launch ends it.

    Returns:
      The exit status: 0 for a job that has come to its end in good order, 1 for one that has failed, 130 when
      it was ended by Ctrl-C, 143 by SIGTERM. (2 is for wrong options.)

    Raises:
      Exception: what made the job fail; Python ends with 1 then, too.
    """
    wiring.configure_logging()
    signal.signal(signal.SIGTERM, _stop)
    result: PipelineResult | None = None
    try:
        result = run(argv)
        state = result.wait_until_finish()
    except KeyboardInterrupt as stopped:
        if result is not None and result.state == PipelineState.FAILED:
            return 1
        return 128 + (signal.SIGTERM if isinstance(stopped, Stopped) else signal.SIGINT)
    return 1 if state == PipelineState.FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
