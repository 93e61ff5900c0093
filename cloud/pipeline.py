"""The command line of a pipeline, parsed and checked: the only use of pipelines' options in this room."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from common.clients import BigQueryEndpoints
from common.options import OptionError, option_values

PipelineName = Literal["streaming", "batch"]
PIPELINES: Final[tuple[PipelineName, ...]] = ("streaming", "batch")


def module(name: PipelineName) -> Any:
    """Imports pipelines.streaming or pipelines.batch.

    The import brings torch and more, which take seconds to load. `anomaly launch list`, `drain` and `cancel`
    do without.
    """
    return importlib.import_module(f"pipelines.{name}")


def parsers(name: PipelineName) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Makes the parser of a pipeline's own options, and that of Beam's."""
    from pipelines.options import beam_parser

    return module(name).parser(), beam_parser()


def steps(command: PipelineCommand, temp_location: str) -> tuple[str, ...]:
    """Builds the pipeline as a launch does, and returns the full names of its steps.

    Raises:
      OptionError: the model cannot be read.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    from pipelines.record import record

    entry = module(command.name)
    _, beam_options = entry.parse(command.argv)
    beam_options.view_as(GoogleCloudOptions).temp_location = temp_location
    pipeline = beam.Pipeline(options=beam_options)
    entry.build(pipeline, command.options, command.options.detection.manifest())
    return record(pipeline, command.options, {}).steps


@dataclass(frozen=True, kw_only=True)
class PipelineCommand:
    """The command line of a pipeline, with the options that a launch and its checks look at.

    An option that a pipeline does not have is None. The pipelines document the options.

    Attributes:
      name: of the pipeline.
      argv: the flags, Beam's among them.
      bigquery: where BigQuery answers.
      load_jobs: whether the job runs load jobs of BigQuery.
      options: all options, as the pipeline has them.
    """

    name: PipelineName
    argv: tuple[str, ...]
    bigquery: BigQueryEndpoints
    model: str
    output_detail: str
    create_tables: bool
    load_jobs: bool
    output: str | None = None
    output_dataset: str | None = None
    subscription: str | None = None
    topic: str | None = None
    alert_topic: str | None = None
    scores_topic: str | None = None
    input: str | None = None
    shadow_model: str | None = None
    history: str | None = None
    input_table: str | None = None
    input_query: str | None = None
    scorer: str | None = None
    vertex_endpoint: str | None = None
    vertex_api_endpoint: str | None = None
    torchserve_url: str | None = None
    options: Any = field(default=None, repr=False)

    def threshold_problem(self, calibrated: Mapping[str, float]) -> str | None:
        """Compares the thresholds among the flags with the model's; returns the conflict, or None."""
        try:
            self.options.detection.thresholds(calibrated)
        except OptionError as error:
            return str(error)
        return None


def parse(name: PipelineName, argv: Sequence[str], temp_location: str, via: str) -> PipelineCommand:
    """Has a pipeline parse and check its flags.

    Args:
      name: of the pipeline.
      argv: its flags and Beam's.
      temp_location: of the launch; Beam's flag has the same name.
      via: "flex" or "direct".

    Raises:
      OptionError: an option is unknown or wrong, or does not fit the launch.
    """
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    from transforms.bigquery.methods import METHODS, NEEDS

    entry = module(name)
    options, beam_options = entry.parse(argv)
    needs = NEEDS[options.tables.write_method]
    if needs.java and via == "flex":
        raise OptionError(
            "--write_method: expected a method without Java, which the image of the template does not have, "
            f"got {options.tables.write_method!r}: use {METHODS[0]}, or --via=direct on a machine with Java"
        )
    if name == "batch" and options.machine.processes != 1:
        raise OptionError(
            "--processes: expected a job on this machine, got one on Dataflow: leave it out; "
            "--num_workers and --max_num_workers are the number of workers"
        )
    beam_options.view_as(GoogleCloudOptions).temp_location = temp_location
    entry.check(options, beam_options)
    values = option_values(options)
    names = {field.name for field in dataclasses.fields(PipelineCommand)}
    return PipelineCommand(
        name=name,
        argv=tuple(argv),
        bigquery=options.endpoints.endpoints(),
        load_jobs=needs.load_jobs,
        options=options,
        **{key: value for key, value in values.items() if key in names},
    )
