"""The batch pipeline: transactions from BigQuery or files, scored by the same transforms as the stream's."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.runners.runner import PipelineResult

from common.clients import EndpointOptions
from common.command import CommandError, Parser, command
from common.file_kinds import Kind
from common.files import kind_by_name
from common.names import TABLE
from common.options import OptionError, add_options, group, option
from common.values import SHARE, location
from model.artifact import Manifest
from pipelines import failures, lookups, wiring
from pipelines.options import MessageOptions, TableOptions, parse_options
from pipelines.processes import RUNNER, ProcessOptions
from transforms import metrics
from transforms.bigquery import ReadBatches
from transforms.columnar import columns_of, source_columns
from transforms.csv_source import ParseCsv, ReadCsv
from transforms.files import BLANK_LINES, ReadJsonLines, ReadParquetBatches
from transforms.parse import Parse, ParseColumns
from transforms.schema import SCORES, SCORES_FULL
from transforms.sinks import WriteFiles

EXAMPLES: Final = """
  anomaly batch --input=transactions.jsonl --model=out/model --output=out/scored
  anomaly batch \\
      --input_table=bigquery-public-data.ml_datasets.ulb_fraud_detection --row_filter='Amount > 100' \\
      --model=gs://my-bucket/model --output_dataset=my-project.anomaly \\
      --runner=DataflowRunner --project=my-project --region=us-central1 --temp_location=gs://my-bucket/tmp

Flags that are not listed here go to Beam: --runner, --project, --region, --temp_location and so on.
"""


@dataclass(frozen=True)
class BatchSource:
    """The transactions to score: files, a table or a query.

    Raises:
      OptionError: there is not exactly one source, or a flag does not go with it.
    """

    input: str | None = option(
        None,
        type=location,
        metavar="PATTERN",
        help="files of JSON lines, Parquet or CSV, local or gs://; a directory stands for all files below "
        "it. Example: gs://my-bucket/2026-03-*.parquet",
    )
    input_table: str | None = option(
        None,
        type=TABLE,
        metavar="TABLE",
        help="BigQuery table with the columns of the model's features, read column by column through the "
        "Storage Read API. Example: bigquery-public-data.ml_datasets.ulb_fraud_detection",
    )
    input_query: str | None = option(
        None,
        metavar="SQL",
        help="BigQuery query whose result has the columns of the model's features. "
        "Example: 'SELECT * FROM `p.d.t` LIMIT 1000'",
    )
    input_format: Literal["auto", "jsonl", "parquet", "csv"] = option(
        "auto",
        help="format of --input; auto goes by the ending: .parquet or .pq, .jsonl, .json or .ndjson, .csv or "
        ".tsv, which .gz, .bz2, .xz, .zst or .deflate may follow, otherwise by the first bytes of the first "
        "file (default: %(default)s)",
    )
    row_filter: str | None = option(
        None,
        metavar="SQL",
        help="condition on the rows of --input_table, evaluated by BigQuery. Example: 'Amount > 100'",
    )

    def __post_init__(self) -> None:
        sources = (self.input, self.input_table, self.input_query)
        if sum(source is not None for source in sources) != 1:
            raise OptionError("expected one of --input, --input_table and --input_query")
        for flag, value in (("--input", self.input), ("--input_query", self.input_query)):
            if value is not None and not value.strip():
                raise OptionError(f"{flag} is empty: pass {'a file' if flag == '--input' else 'a query'}")
        if self.row_filter and not self.input_table:
            raise OptionError(
                "--row_filter goes with --input_table; put the condition into --input_query instead"
            )

    @property
    def format(self) -> Kind | None:
        """The format of --input by --input_format or by the ending; None where neither tells it."""
        if self.input_format != "auto":
            return self.input_format
        if self.input is None:
            return None
        return kind_by_name(self.input)


@dataclass(frozen=True)
class FileOptions:
    """The Parquet files that take scores, alerts and dead letters."""

    output: str | None = option(
        None,
        type=location,
        metavar="DIR",
        help="directory for Parquet files scores-*, alerts-* and error_records-*, local or gs://; _SUCCESS "
        "is written when all are there. Example: gs://my-bucket/scored",
    )
    overwrite: bool = option(
        False,
        help="replace the files that an earlier job left in --output, once the new ones are complete; "
        "otherwise a job is refused there",
    )

    def __post_init__(self) -> None:
        if self.overwrite and not self.output:
            raise OptionError(
                "--overwrite replaces the files of an earlier job: pass their directory as --output"
            )


@dataclass(frozen=True)
class LimitOptions:
    """The share of rows that may fail before the job counts as failed."""

    max_dead_letter_share: float = option(
        1.0,
        type=SHARE,
        metavar="SHARE",
        help="exit with status 1 where more of the rows are dead letters, after everything is written; "
        "with 1, where no row was scored. Counters decide at the end of the job, for which a launch on "
        "Dataflow by anomaly launch or a template does not wait (default: %(default)s)",
    )


@dataclass(frozen=True, kw_only=True)
class BatchOptions(wiring.JobOptions):
    """The options of the batch pipeline.

    Raises:
      OptionError: scores have no place to go.
    """

    source: BatchSource = group("source (one of --input, --input_table and --input_query)")
    tables: TableOptions = group("sinks (one of --output_dataset and --output at least)")
    files: FileOptions = group("files")
    limits: LimitOptions = group("limits")
    machine: ProcessOptions = group("this machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.tables.output_dataset or self.files.output):
            raise OptionError(
                "expected --output_dataset=PROJECT.DATASET or --output=DIR: scores need a place to go"
            )


def parser() -> Parser:
    """Makes the parser of the command line."""
    flags = Parser("anomaly batch", __doc__, EXAMPLES)
    add_options(flags, BatchOptions)
    return flags


def parse(argv: Sequence[str] | None = None) -> tuple[BatchOptions, PipelineOptions]:
    """Reads a command line: the options of this pipeline, and Beam's.

    Raises:
      OptionError: the options do not fit.
    """
    return parse_options(parser(), BatchOptions, argv)


def build(pipeline: beam.Pipeline, options: BatchOptions, manifest: Manifest) -> WriteFiles | None:
    """source -> detect -> tables, files. Returns the sink of the files, where there is one."""
    # Fixed here, at launch, so that a bundle that is run again gives the same rows.
    launched = dt.datetime.now(dt.UTC)
    source, parse_rows = source_of(options, manifest, launched)
    detected = (
        pipeline
        | "Read" >> source
        | "Detect" >> wiring.detect(parse_rows, options, manifest, streaming=False)
    )
    wiring.write_tables(detected, options, streaming=False)
    if not options.files.output:
        return None
    schema = SCORES_FULL if options.detection.output_detail == "full" else SCORES
    files = WriteFiles(options.files.output, schema, options.files.overwrite)
    _ = detected | "Write files" >> files
    return files


class SourceOptions(Protocol):
    """The options that say which rows a job reads, and how."""

    @property
    def source(self) -> BatchSource:
        """The rows."""

    @property
    def messages(self) -> MessageOptions:
        """The rules that they have to keep."""

    @property
    def endpoints(self) -> EndpointOptions:
        """The addresses of BigQuery."""


def source_of(
    options: SourceOptions, manifest: Manifest, launched: dt.datetime
) -> tuple[beam.PTransform, Parse | ParseColumns | ParseCsv]:
    """Makes the transform that reads rows, and the one that makes transactions of them.

    Args:
      options: of the job.
      manifest: of the model.
      launched: the time of rows that have none.
    """
    source = options.source
    rules = options.messages.rules(manifest, default_time=launched)
    parse_rows = ParseColumns(launched, rules)
    columns = source_columns(rules)
    if source.input:
        form = source.format or lookups.input_format(source.input)
        if form == "jsonl":
            return ReadJsonLines(source.input), Parse(rules)
        if form == "csv":
            numbers, categories = columns_of(rules, "number"), columns_of(rules, "category")
            read_csv = ReadCsv(source.input, columns, numbers, categories=categories)
            return read_csv, ParseCsv(launched, rules)
        return ReadParquetBatches(source.input, columns, optional=True), parse_rows
    read = ReadBatches(
        table=source.input_table,
        query=source.input_query,
        columns=columns,
        optional=True,
        row_filter=source.row_filter or "",
        endpoints=options.endpoints.endpoints(),
    )
    return read, parse_rows


def check(options: BatchOptions, beam_options: PipelineOptions) -> None:
    """Checks the options that need neither the model nor a file, so that a launch refuses by it as well.

    Raises:
      OptionError: the options do not fit.
    """
    wiring.check(options, beam_options)
    options.machine.check(beam_options, options.tables.write_method)


def run(argv: Sequence[str] | None = None) -> PipelineResult:
    """Checks the options, sets up the tables, and starts the pipeline.

    Args:
      argv: command-line arguments; those of the process when None.

    Raises:
      OptionError: the options do not fit, or something that they name is not there.
    """
    options, beam_options = parse(argv)
    check(options, beam_options)
    source, files = options.source, options.files
    found: Sequence[lookups.SourceFile] = ()
    if source.input is not None:
        find = lookups.find_remote_file if "://" in source.input else lookups.find_local_files
        found = find(source.input, source.format)
    if files.output:
        lookups.check_output(files.output, files.overwrite)
    wiring.set_runner(beam_options, RUNNER)
    options.machine.apply(beam_options)
    manifest = options.detection.manifest()
    rules = options.messages.rules(manifest)
    lookups.check_files(source.input or "", found, rules)
    options = wiring.with_environment(options, beam_options)
    if source.input_table:
        project = beam_options.view_as(GoogleCloudOptions).project
        lookups.check_table(source.input_table, project, options.endpoints.endpoints(), rules)
    wiring.create_tables(options, beam_options)
    pipeline = beam.Pipeline(options=beam_options)
    written = build(pipeline, options, manifest)
    try:
        return pipeline.run()
    except BaseException:  # an interruption as well
        if written:
            written.discard()
        raise


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: runs the job to its end."""
    wiring.configure_logging()
    limit = parse(argv)[0].limits.max_dead_letter_share
    with failures.told():
        result = run(argv)
        result.wait_until_finish()
    totals = metrics.totals(result)
    names = (
        *(metrics.ROWS_IN, metrics.ROWS_SCORED, metrics.DEAD_LETTERS, metrics.ALERTS),
        *(metrics.IDS_DERIVED, metrics.TIMES_DEFAULTED),
    )
    print(", ".join(f"{name.replace('_', ' ')}: {totals.get(name, 0):,}" for name in names))
    if blank := totals.get(BLANK_LINES):
        print(f"blank lines, which are no messages: {blank:,}")
    check_totals(totals, limit)
    return 0


def check_totals(totals: Mapping[str, int], max_dead_letter_share: float) -> None:
    """Checks that a job has scored enough of its rows.

    >>> check_totals({"rows_in": 100, "rows_scored": 99, "dead_letters": 1}, 0.01)

    Args:
      totals: of the counters of the finished job.
      max_dead_letter_share: of the rows that came in.

    Raises:
      CommandError: none was scored, or more than this share are dead letters.
    """
    rows, dead = (totals.get(name, 0) for name in (metrics.ROWS_IN, metrics.DEAD_LETTERS))
    where = "column errorMessage of error_records has the reasons"
    if rows and not totals.get(metrics.ROWS_SCORED, 0):
        raise CommandError(f"none of {rows:,} rows was scored: {where}")
    if rows and dead / rows > max_dead_letter_share:
        raise CommandError(
            f"--max_dead_letter_share: expected at most {max_dead_letter_share:.2%} dead letters, got "
            f"{dead:,} of {rows:,} rows ({dead / rows:.2%}); the output is written, and {where}"
        )


if __name__ == "__main__":
    sys.exit(main())
