"""What both entry points wire in the same way: detection and sinks from options."""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import shutil
from typing import Any

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
)

from model.artifact import Manifest
from pipelines import lookups, options
from transforms import clients, remote_options, tables
from transforms.alert import Alert
from transforms.clients import BigQueryEndpoints
from transforms.detect import Detect, Detected
from transforms.message import MessageRules
from transforms.parse import Parse, ParseColumns
from transforms.schema import SCORES, SCORES_FULL
from transforms.score import Score
from transforms.sinks import WriteFiles, WriteTables


def message_rules(args: argparse.Namespace, **more: Any) -> MessageRules:
    """What a message may be, by the options; `more` are further fields of MessageRules."""
    return MessageRules(
        max_bytes=args.max_message_bytes,
        max_lead=dt.timedelta(seconds=args.max_event_lead_seconds),
        max_age=dt.timedelta(days=args.max_event_age_days),
        **more,
    )


def detect(parse: Parse | ParseColumns, args: argparse.Namespace, manifest: Manifest) -> Detect:
    """The detection that the options describe."""
    handler = remote_options.handler_from_options(args, manifest)
    return Detect(parse, Score(handler), Alert(manifest.thresholds, args.min_severity))


def write(detected: Detected, args: argparse.Namespace, streaming: bool) -> None:
    """Attaches the sinks that the options name."""
    schema = SCORES_FULL if args.output_detail == "full" else SCORES
    if args.output_dataset:
        _ = detected | "Write tables" >> WriteTables(
            args.output_dataset,
            schema,
            method=args.write_method,
            streaming=streaming,
            endpoints=endpoints(args),
            temp_location=args.load_location,
        )
    if args.output:
        _ = detected | "Write files" >> WriteFiles(args.output, schema, args.overwrite)


def endpoints(args: argparse.Namespace) -> BigQueryEndpoints:
    """Where BigQuery answers."""
    return BigQueryEndpoints(args.bigquery_endpoint, args.bigquery_storage_endpoint)


def local_endpoints(
    parser: argparse.ArgumentParser, args: argparse.Namespace, beam_options: PipelineOptions
) -> None:
    """Points a job on this machine at the BigQuery that the environment names, and refuses half a one."""
    runner = beam_options.view_as(StandardOptions).runner or ""
    # Beam's own connectors are pointed elsewhere by other means, or not at all.
    if runner.endswith("DataflowRunner") or args.write_method != options.WRITE_METHODS[0]:
        return
    clients.take_environment(args)
    try:
        found = endpoints(args)
    except ValueError as error:
        parser.error(
            f"{error} (where the flag is not given, {clients.REST_VARIABLE} or {clients.STORAGE_VARIABLE} of "
            "the environment says so)"
        )
    sources = (getattr(args, name, None) for name in ("input_table", "input_query"))
    if found.half_local and (args.output_dataset or any(sources)):
        parser.error(
            f"{clients.REST_FLAG} is {found.rest or 'Google'} and {clients.STORAGE_FLAG} is "
            f"{found.storage or 'Google'}: tables and rows would be in different places. Give both or "
            f"neither, by flag or by {clients.REST_VARIABLE} and {clients.STORAGE_VARIABLE}, as "
            "`anomaly local up` prints them"
        )


def check_pubsub(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """For a stream on this machine: that its topics and its subscription exist; a job finds that out late."""
    for flag in ("subscription", "topic", "alert_topic"):
        name = getattr(args, flag)
        if not name:
            continue
        try:
            lack = lookups.missing_pubsub(name)
        except Exception as error:  # whatever Google's client raises: no credentials, no network
            parser.error(f"--{flag}: cannot look up {name}: {error}")
        if lack:
            parser.error(f"--{flag}: {lack}")


def create_tables(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Creates the missing tables and views of --output_dataset, unless --no-create_tables was given."""
    if not (args.output_dataset and args.create_tables):
        return
    project, _, name = args.output_dataset.rpartition(".")
    wanted = (tables.scores_table(full=args.output_detail == "full"), *tables.TABLES[1:])
    try:
        tables.create_tables(endpoints(args).client(project), args.output_dataset, wanted)
    except tables.NoAnswerError as error:
        parser.error(f"{clients.REST_FLAG}: {error}; is the address right, and does the server run?")
    except Exception as error:  # whatever Google's client raises: no dataset, no permission, no network
        parser.error(
            f"--output_dataset: cannot create the tables of {args.output_dataset}: {error}\n"
            f"Create the dataset with: bq mk --dataset {project}:{name}"
        )


def check_write_method(
    parser: argparse.ArgumentParser, args: argparse.Namespace, beam_options: PipelineOptions
) -> None:
    """Checks what --write_method needs beside itself, and the endpoints."""
    try:
        endpoints(args)
    except ValueError as error:
        parser.error(str(error))
    if args.write_method != options.WRITE_METHODS[0] and not args.output_dataset:
        parser.error(f"--write_method={args.write_method} writes tables: give --output_dataset as well")
    args.load_location = beam_options.view_as(GoogleCloudOptions).temp_location
    if args.output_dataset and args.write_method == "file_loads" and not args.load_location:
        parser.error("--write_method=file_loads stages files: give --temp_location=gs://BUCKET/tmp")
    if args.write_method == "storage_write_api" and shutil.which("java") is None:
        parser.error(
            "--write_method=storage_write_api is expanded by Java at launch, and there is no `java` on the "
            "PATH: install Java 11 or newer, or use storage_arrow"
        )
    for flag in (clients.REST_FLAG, clients.STORAGE_FLAG):
        if args.write_method != options.WRITE_METHODS[0] and getattr(args, flag.removeprefix("--")):
            parser.error(
                f"--write_method={args.write_method} is Beam's own connector, which takes no {flag} and "
                "would write to Google's public endpoint; use storage_arrow"
            )


def configure_logging() -> None:
    """Logs at INFO, but for what Beam says of its own type hints at every construction of a pipeline."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("apache_beam.typehints").setLevel(logging.WARNING)


def default_runner(beam_options: PipelineOptions, default: str) -> str:
    """The name of the runner; sets `default` where none was given.

    Beam's own default, DirectRunner, may try to download a runner binary before it falls back.
    """
    standard = beam_options.view_as(StandardOptions)
    standard.runner = standard.runner or default
    # Workers import the installed package. Beam would pickle __main__ and stage it on top of that.
    beam_options.view_as(SetupOptions).save_main_session = False
    return str(standard.runner)
