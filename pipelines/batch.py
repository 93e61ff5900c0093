"""The batch pipeline: transactions from BigQuery or files, scored by the same transforms as the stream's."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.runners.runner import PipelineResult

from common import names
from common.command import command
from model.artifact import Manifest
from pipelines import lookups, options, wiring
from transforms import metrics, remote_options
from transforms.bigquery import ReadBatches
from transforms.columnar import SOURCE_COLUMNS
from transforms.compressed import compression
from transforms.files import ReadJsonLines, ReadParquetBatches
from transforms.parse import Parse, ParseColumns

EXAMPLE = """examples:
  python -m pipelines.batch --input=transactions.jsonl --model=out/model --output=out/scored
  python -m pipelines.batch \\
      --input_table=bigquery-public-data.ml_datasets.ulb_fraud_detection --row_filter='Amount > 100' \\
      --model=gs://my-bucket/model --output_dataset=my-project.anomaly \\
      --runner=DataflowRunner --project=my-project --region=us-central1 --temp_location=gs://my-bucket/tmp

Flags that are not listed here go to Beam: --runner, --project, --region, --temp_location and so on.
"""


def parser() -> options.OptionsParser:
    """The options of this pipeline, with help."""
    found = options.OptionsParser(prog="python -m pipelines.batch", description=__doc__, epilog=EXAMPLE)
    group = found.add_argument_group("source (one of --input, --input_table and --input_query)")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        metavar="PATTERN",
        help="files of JSON lines or Parquet, local or gs://. Example: gs://my-bucket/2026-03-*.parquet",
    )
    source.add_argument(
        "--input_table",
        type=names.TABLE,
        metavar="TABLE",
        help="BigQuery table in the ULB layout, read column by column through the Storage Read API. "
        "Example: bigquery-public-data.ml_datasets.ulb_fraud_detection",
    )
    source.add_argument(
        "--input_query",
        metavar="SQL",
        help="BigQuery query whose result has the ULB layout. Example: 'SELECT * FROM `p.d.t` LIMIT 1000'",
    )
    group.add_argument(
        "--input_format",
        choices=("auto", "jsonl", "parquet"),
        default="auto",
        help="format of --input; auto goes by the ending: .parquet, or .jsonl, .json, .ndjson, which .gz, "
        ".bz2, .xz, .zst or .deflate may follow (default: %(default)s)",
    )
    group.add_argument(
        "--row_filter",
        metavar="SQL",
        help="condition on the rows of --input_table, evaluated by BigQuery. Example: 'Amount > 100'",
    )
    options.add_message_arguments(found)
    options.add_model_arguments(found)
    remote_options.add_arguments(found)
    options.add_sink_arguments(found, files=True)
    found.add_argument_group("files").add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace the files that an earlier job left in --output, once the new ones are complete; else a "
        "job is refused there",
    )
    return found


def build(pipeline: beam.Pipeline, args: argparse.Namespace, manifest: Manifest) -> None:
    """source -> detect -> tables, files."""
    # Fixed here, at launch, so that a bundle that is run again gives the same rows.
    launched = dt.datetime.now(dt.UTC)
    source, parse = _source(args, launched)
    detected = pipeline | "Read" >> source | "Detect" >> wiring.detect(parse, args, manifest)
    wiring.write(detected, args, streaming=False)


def _source(args: argparse.Namespace, launched: dt.datetime) -> tuple[beam.PTransform, Parse | ParseColumns]:
    rules = wiring.message_rules(args, default_time=launched)
    if args.input and input_format(args) == "jsonl":
        return ReadJsonLines(args.input), Parse(rules)
    parse = ParseColumns(launched, rules)
    if args.input:
        return ReadParquetBatches(args.input, SOURCE_COLUMNS, optional=True), parse
    read = ReadBatches(
        table=args.input_table,
        query=args.input_query,
        columns=SOURCE_COLUMNS,
        optional=True,
        row_filter=args.row_filter or "",
        endpoints=wiring.endpoints(args),
    )
    return read, parse


def input_format(args: argparse.Namespace) -> str | None:
    """The format of --input: what --input_format says, or what the ending tells; None where neither does."""
    if args.input_format != "auto":
        return str(args.input_format)
    name = args.input.rpartition(".")[0] if compression(args.input) else args.input
    endings = {"parquet": "parquet", "jsonl": "jsonl", "json": "jsonl", "ndjson": "jsonl"}
    return endings.get(name.rpartition(".")[2].lower())


def run(argv: Sequence[str] | None = None) -> PipelineResult:
    """Checks the options, sets up the tables, and starts the pipeline.

    Args:
      argv: command-line arguments; those of the process when None.
    """
    found = parser()
    args, beam_options = found.parse(argv)
    manifest = check(found, args, beam_options)
    wiring.local_endpoints(found, args, beam_options)
    if args.input_table:
        project = beam_options.view_as(GoogleCloudOptions).project
        lookups.check_table(found, args.input_table, project, wiring.endpoints(args))
    wiring.create_tables(found, args)
    pipeline = beam.Pipeline(options=beam_options)
    build(pipeline, args, manifest)
    return pipeline.run()


def check(found: options.OptionsParser, args: argparse.Namespace, beam_options: PipelineOptions) -> Manifest:
    """What argparse alone cannot check; ends the program with a message that says what to do."""
    check_arguments(found, args, beam_options)
    # Cloud Storage is left to the job: whoever launches it need not be allowed to read its input.
    if args.input and "://" not in args.input:
        lookups.check_local_files(found, args.input, parquet=input_format(args) == "parquet")
    if args.output:
        lookups.check_output(found, args)
    wiring.default_runner(beam_options, "FnApiRunner")
    return options.resolve_model(found, args)


def check_arguments(
    found: options.OptionsParser, args: argparse.Namespace, beam_options: PipelineOptions
) -> None:
    """The part of `check` that needs neither the model nor a file, so that a launch refuses by it too."""
    options.require_sink(found, args)
    options.check_thresholds(found, args)
    remote_options.validate_arguments(found, args)
    for flag, value in (("--input", args.input), ("--input_query", args.input_query)):
        if value is not None and not value.strip():
            found.error(f"{flag} is empty; give {'a file' if flag == '--input' else 'a query'}")
    if args.row_filter and not args.input_table:
        found.error("--row_filter goes with --input_table; put the condition into --input_query instead")
    if args.input and input_format(args) is None:
        found.error(f"--input={args.input}: cannot tell the format; give --input_format=jsonl or parquet")
    if args.overwrite and not args.output:
        found.error("--overwrite replaces the files of an earlier job: give their directory as --output")
    wiring.check_write_method(found, args, beam_options)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs the job to its end."""
    wiring.configure_logging()
    result = run(argv)
    result.wait_until_finish()
    totals = metrics.totals(result)
    names = (metrics.ROWS_IN, metrics.ROWS_SCORED, metrics.DEAD_LETTERS, metrics.ALERTS)
    print(", ".join(f"{name.replace('_', ' ')}: {totals.get(name, 0):,}" for name in names))


if __name__ == "__main__":
    main()
