"""The steps that both entry points share: options to detection and tables, and the checks of a launch."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import uuid
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

from common import clients
from common.clients import EndpointOptions
from common.google import ERRORS, explain, grant_on_dataset, grant_on_project, remedy
from common.options import OptionError, group
from model.artifact import Manifest
from model.outputs import ANOMALY_SCORE
from pipelines.history_options import HistoryOptions
from pipelines.options import DetectionOptions, MessageOptions, TableOptions
from pipelines.scorers import ScorerOptions, model_handler
from transforms import tables
from transforms.alert import Alert
from transforms.bigquery.methods import NEEDS
from transforms.csv_source import ParseCsv
from transforms.detect import Detect, Detected
from transforms.parse import Parse, ParseColumns
from transforms.profiles import CollectProfiles
from transforms.rebatch import BATCH_ROWS
from transforms.schema import SCORES, SCORES_FULL
from transforms.score import Score
from transforms.sinks import WriteTables
from transforms.table_columns import TableError
from transforms.windows import CountWindows

_MEMBER: Final = "user:EMAIL"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The options that both pipelines have; each adds its source and its other sinks.

    Attributes:
      source: the pipeline's own dataclass.
      messages: the rules of messages.
      detection: the model and the alerting rule.
      scorer: the place where the model is.
      history: the histories of accounts that the job begins with.
      tables: the tables to write, if any.
      endpoints: where BigQuery answers.

    Raises:
      OptionError: the score has no thresholds, or the model of a server is to be refreshed here.
    """

    source: Any = group("source")
    messages: MessageOptions = group("messages")
    detection: DetectionOptions = group("model")
    scorer: ScorerOptions = group("scorer")
    history: HistoryOptions = group("history")
    tables: TableOptions = group("sinks")
    endpoints: EndpointOptions = group()

    def __post_init__(self) -> None:
        if self.detection.refresh_seconds and self.scorer.scorer != "pytorch":
            raise OptionError(
                "--model_refresh_seconds goes with --scorer=pytorch, and the scorer is "
                f"{self.scorer.scorer}: roll the model out at the server"
            )
        if self.detection.shadow_model and self.scorer.scorer != "pytorch":
            raise OptionError(
                f"--shadow_model goes with --scorer=pytorch, and the scorer is {self.scorer.scorer}"
            )
        given = (self.detection.medium_threshold, self.detection.high_threshold)
        if self.scorer.score_field != ANOMALY_SCORE and None in given:
            raise OptionError(
                f"--score_field={self.scorer.score_field}: the thresholds of --model are for "
                f"{ANOMALY_SCORE}; pass --medium_threshold and --high_threshold for this score"
            )


_Job = TypeVar("_Job", bound=JobOptions)


def detect(
    parse: Parse | ParseColumns | ParseCsv,
    options: JobOptions,
    manifest: Manifest,
    streaming: bool,
    batch_rows: int = BATCH_ROWS,
) -> Detect:
    """Makes the detection that the options describe.

    Args:
      parse: the first step.
      options: of the job.
      manifest: of the model.
      streaming: for a stream.
      batch_rows: the most rows that are scored at once.

    Raises:
      OptionError: --history does not fit the model.
    """
    # The bins of the score are those of the model's own score.
    has_score = options.scorer.score_field == ANOMALY_SCORE
    every = options.tables.profile_every if options.tables.output_dataset and has_score else 0
    handler = model_handler(options.scorer, options.detection, manifest, every)
    profiles = CollectProfiles(streaming, options.tables.profile_seconds) if every else None
    lead = options.messages.max_event_lead_seconds
    history = options.history.transform(manifest.spec, streaming, batch_rows, lead)
    return Detect(parse, Score(handler, profiles), Alert(options.detection.min_severity), history)


def write_tables(detected: Detected, options: JobOptions, streaming: bool) -> None:
    """Attaches the tables, where the options name a dataset."""
    if options.tables.output_dataset:
        _ = detected | "Write tables" >> WriteTables(
            options.tables.output_dataset,
            SCORES_FULL if options.detection.output_detail == "full" else SCORES,
            method=options.tables.write_method,
            streaming=streaming,
            endpoints=options.endpoints.endpoints(),
            windows=_windows(options.tables, streaming),
        )


def _windows(options: TableOptions, streaming: bool) -> CountWindows | None:
    if not options.window_seconds:
        return None
    return CountWindows(options.window_seconds, uuid.uuid4().hex, streaming)


def check(options: JobOptions, beam_options: PipelineOptions) -> None:
    """Checks the needs of --write_method. It needs neither the model nor a file.

    Raises:
      OptionError: something is missing at launch, or another flag does not go with it.
    """
    method = options.tables.write_method
    flag, needs = f"--write_method={method}", NEEDS[method]
    options.scorer.warn()
    if needs.is_beams and not options.tables.output_dataset:
        raise OptionError(f"{flag} writes tables: pass --output_dataset as well")
    if needs.temp_location and not beam_options.view_as(GoogleCloudOptions).temp_location:
        raise OptionError(f"{flag} stages files: pass --temp_location=gs://BUCKET/tmp")
    if needs.java and shutil.which("java") is None:
        raise OptionError(
            f"{flag} is expanded by Java at launch, and there is no `java` on the PATH: install Java 11 or "
            "newer, or use storage_arrow"
        )
    for name, value in dataclasses.asdict(options.endpoints).items():
        if needs.is_beams and value:
            raise OptionError(
                f"{flag} is Beam's own connector, which takes no --{name} and would write to Google's public "
                "endpoint; use storage_arrow"
            )


def with_environment(options: _Job, beam_options: PipelineOptions) -> _Job:
    """Returns the options of a job on this machine with the BigQuery that the environment names.

    Raises:
      OptionError: one of the two addresses is on this machine and the other is not.
    """
    runner = beam_options.view_as(StandardOptions).runner or ""
    # Beam's own connectors are pointed elsewhere by other means, or not at all.
    if runner.endswith("DataflowRunner") or NEEDS[options.tables.write_method].is_beams:
        return options
    try:
        completed = options.endpoints.with_environment(os.environ)
    except OptionError as error:
        raise OptionError(
            f"{error} (where the flag is not given, {clients.REST_VARIABLE} or {clients.STORAGE_VARIABLE} of "
            "the environment says so)"
        ) from error
    endpoints = completed.endpoints()
    sources = (getattr(options.source, name, None) for name in ("input_table", "input_query"))
    if endpoints.half_local and (options.tables.output_dataset or any(sources)):
        raise OptionError(
            f"{clients.REST_FLAG} is {endpoints.rest or 'Google'} and {clients.STORAGE_FLAG} is "
            f"{endpoints.storage or 'Google'}: tables and rows would be in different places. Pass both or "
            f"neither, by flag or by {clients.REST_VARIABLE} and {clients.STORAGE_VARIABLE}, as "
            "`anomaly local up` prints them"
        )
    return dataclasses.replace(options, endpoints=completed)


def create_tables(options: JobOptions, beam_options: PipelineOptions) -> None:
    """Creates the missing tables and views of --output_dataset, unless --no_create_tables was given.

    A missing dataset is made in the job's region.

    Raises:
      OptionError: BigQuery does not answer, or refuses.
    """
    dataset = options.tables.output_dataset
    if not (dataset and options.tables.create_tables):
        return
    project = dataset.rpartition(".")[0]
    scores = tables.scores_table(full=options.detection.output_detail == "full")
    try:
        client = options.endpoints.endpoints().client(project)
        region = beam_options.view_as(GoogleCloudOptions).region
        tables.create_tables(client, dataset, (scores, *tables.TABLES[1:]), region)
    except tables.NoAnswerError as error:
        raise OptionError(
            f"{clients.REST_FLAG}: {error}; is the address right, and does the server run?"
        ) from error
    except tables.AccessError as error:
        raise OptionError(f"--output_dataset: {error}\n{_steps(error, dataset)}") from error
    except TableError as error:
        raise OptionError(f"--output_dataset: {error}") from error
    except ERRORS as error:
        problem = explain(error)
        fix = remedy(problem, project)
        raise OptionError(
            f"--output_dataset: cannot create the tables of {dataset}: {problem.text}"
            + (f"\nRun: {fix}" if fix else "")
        ) from error


def _steps(error: tables.AccessError, dataset: str) -> str:
    """Makes the commands after which `create_tables` can do what it may not do."""
    project, _, name = dataset.rpartition(".")
    grants = []
    if error.on_dataset:
        grants.append(grant_on_dataset(dataset, error.on_dataset, _MEMBER))
    if error.on_project:
        grants.append(grant_on_project(project, error.on_project, _MEMBER))
    return "\n".join(
        [
            f"Have somebody run who may: anomaly resources create --project={project} --dataset={name}",
            f"Or grant the roles to whoever starts the job, as {_MEMBER} or serviceAccount:EMAIL:",
            *grants,
        ]
    )


QUIET: Final = {
    "apache_beam.typehints": "WARNING",  # lines about Beam's own hints, at every construction of a pipeline
    "apache_beam.transforms.util": "WARNING",  # BatchElements statistics, a line a bundle
}
"""Loggers of Beam whose INFO lines tell nothing; on workers each of them is an entry of Cloud Logging."""


def configure_logging() -> None:
    """Logs at INFO, without the lines of `QUIET`."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)


def set_runner(beam_options: PipelineOptions, default: str) -> str:
    """Sets the runner where none was given, and the levels of its workers' loggers; returns its name.

    Beam's own default, DirectRunner, may try to download a runner binary before it falls back.
    """
    standard = beam_options.view_as(StandardOptions)
    standard.runner = standard.runner or default
    # Workers import the installed package. Beam would pickle __main__ and stage it on top of that.
    beam_options.view_as(SetupOptions).save_main_session = False
    worker = beam_options.view_as(WorkerOptions)
    worker.sdk_harness_log_level_overrides = QUIET | (worker.sdk_harness_log_level_overrides or {})
    return str(standard.runner)
