"""Builds the histories of accounts from past transactions: the start of a stream, or of a batch job."""

from __future__ import annotations

import datetime as dt
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.runners.runner import PipelineResult

from common.clients import EndpointOptions
from common.command import Parser, command
from common.names import TABLE
from common.options import OptionError, add_options, group, option
from common.values import location, moment
from features.roles import EPOCH
from model.artifact import Manifest
from model.data import BIGQUERY_SCHEME
from pipelines import batch, failures, lookups, wiring
from pipelines.history_options import HistoryOptions
from pipelines.options import DetectionOptions, MessageOptions, parse_options
from pipelines.processes import RUNNER, ProcessOptions
from transforms import metrics
from transforms.history import KEYS
from transforms.history_build import COUNTED, LATER, BuildHistory
from transforms.history_files import INDEX, HistoryFiles

EXAMPLES: Final = """
  anomaly history build --data=transactions.parquet --model=out/model --output=out/history
  anomaly history build \\
      --data=bigquery://my-project.payments.transactions --until=2026-11-01T00:00:00Z \\
      --model=gs://my-bucket/model --output=gs://my-bucket/history \\
      --runner=DataflowRunner --project=my-project --region=us-central1 --temp_location=gs://my-bucket/tmp
  anomaly streaming --history=gs://my-bucket/history ...

Flags that are not listed here go to Beam: --runner, --project, --region, --temp_location and so on.
"""
_ACTION: Final = "build"


@dataclass(frozen=True)
class BuildOptions:
    """The past transactions, and the directory of their histories."""

    data: str = option(
        type=location,
        metavar="SOURCE",
        help="past transactions: JSON lines, Parquet or CSV as a file, pattern or directory, local or gs://; "
        f"or {BIGQUERY_SCHEME}project.dataset.table",
    )
    output: str = option(
        type=location,
        metavar="DIR",
        help=f"directory for the histories, local or gs://; {INDEX} is written when all are there",
    )
    until: dt.datetime | None = option(
        None,
        type=moment,
        metavar="TIME",
        help="leave later transactions out. Whoever begins with the histories counts what comes after the "
        "last one in them (default: the launch of this job)",
    )

    @property
    def source(self) -> batch.BatchSource:
        """The source, as a batch job has it."""
        if self.data.startswith(BIGQUERY_SCHEME):
            return batch.BatchSource(input_table=TABLE(self.data.removeprefix(BIGQUERY_SCHEME)))
        return batch.BatchSource(input=self.data)


@dataclass(frozen=True, kw_only=True)
class HistoryBuildOptions:
    """The options of the command."""

    build: BuildOptions = group("build")
    messages: MessageOptions = group("messages")
    detection: DetectionOptions = group("model")
    history: HistoryOptions = group("history")
    endpoints: EndpointOptions = group()
    machine: ProcessOptions = group("this machine")

    @property
    def source(self) -> batch.BatchSource:
        """The source, as a batch job has it."""
        return self.build.source


def parser() -> Parser:
    """Makes the parser of the command line."""
    flags = Parser("anomaly history build", __doc__, EXAMPLES)
    add_options(flags, HistoryBuildOptions)
    return flags


def parse(argv: Sequence[str]) -> tuple[HistoryBuildOptions, PipelineOptions]:
    """Reads a command line: the options of this job, and Beam's.

    Raises:
      OptionError: the options do not fit.
    """
    return parse_options(parser(), HistoryBuildOptions, argv)


def build(pipeline: beam.Pipeline, options: HistoryBuildOptions, manifest: Manifest) -> None:
    """source -> transactions -> histories by bucket -> files."""
    launched = dt.datetime.now(dt.UTC)
    source, parse_rows = batch.source_of(options, manifest, launched)
    # A stream passes over all events up to the last one here: it must not lie ahead.
    until = min(options.build.until or launched, launched)
    transform = BuildHistory(
        manifest.spec,
        options.build.output,
        (until - EPOCH) // dt.timedelta(microseconds=1),
        options.history.history_buckets,
        options.history.start(manifest.spec),
    )
    parsed = pipeline | "Read" >> source | "Parse" >> parse_rows
    _ = parsed.transactions | "Build history" >> transform


def run(argv: Sequence[str]) -> tuple[HistoryBuildOptions, PipelineResult]:
    """Checks the options, and starts the job.

    Raises:
      OptionError: the options do not fit, or something that they name is not there.
    """
    options, beam_options = parse(argv)
    source = options.source
    check_output(options.build.output)
    wiring.set_runner(beam_options, RUNNER)
    options.machine.apply(beam_options)
    manifest = options.detection.manifest()
    if not manifest.spec.history:
        raise OptionError(
            "--model: expected a model with history features, got one without; see docs/history.md"
        )
    rules = options.messages.rules(manifest)
    if source.input is not None:
        find = lookups.find_remote_file if "://" in source.input else lookups.find_local_files
        lookups.check_files(source.input, find(source.input, source.format), rules)
    if source.input_table:
        project = beam_options.view_as(GoogleCloudOptions).project
        lookups.check_table(source.input_table, project, options.endpoints.endpoints(), rules)
    pipeline = beam.Pipeline(options=beam_options)
    build(pipeline, options, manifest)
    return options, pipeline.run()


def check_output(directory: str) -> None:
    """Checks that there is no history in a directory, of any version: a stream may be reading it.

    Raises:
      OptionError: there is one, or the directory cannot be read.
    """
    try:
        is_there = HistoryFiles.is_in(directory)
    except OSError as error:
        raise OptionError(f"--output: expected a directory that can be read, got {error}") from error
    if is_there:
        raise OptionError(f"--output: {directory} has a history already: pass another directory")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: runs the job to its end, and says what the history holds."""
    wiring.configure_logging()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != [_ACTION]:
        if words[:1] in (["-h"], ["--help"]):
            parser().parse_args(words)  # prints the help, and ends
        raise OptionError(f"expected `anomaly history {_ACTION}`, got {words[0] if words else 'nothing'!r}")
    with failures.told():
        options, result = run(words[1:])
        result.wait_until_finish()
    totals = metrics.totals(result)
    names = (metrics.ROWS_IN, metrics.DEAD_LETTERS, metrics.TIMES_DEFAULTED, LATER, COUNTED, KEYS)
    print(", ".join(f"{name.replace('_', ' ')}: {totals.get(name, 0):,}" for name in names))
    files = HistoryFiles.read(options.build.output)
    until = EPOCH + dt.timedelta(microseconds=files.until)
    print(f"{options.build.output}: {files.buckets} buckets, until {until.isoformat()}")
    for keys in files.keys:
        print(f"  by {keys.by}: {keys.count:,} keys")
    if dead := totals.get(metrics.DEAD_LETTERS, 0):
        logging.warning("%s rows could not be read, and are in no history", f"{dead:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
