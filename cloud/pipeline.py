"""The command line of a pipeline, parsed and checked: the only use of pipelines' options in this room."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from common.options import OptionError
from transforms.clients import BigQueryEndpoints

PipelineName = Literal["streaming", "batch"]
PIPELINES: Final[tuple[PipelineName, ...]] = ("streaming", "batch")


def module(name: PipelineName) -> Any:
    """Imports pipelines.streaming or pipelines.batch.

    The import brings torch and more, which take seconds to load. `anomaly launch list`, `drain` and `cancel`
    do without.
    """
    return importlib.import_module(f"pipelines.{name}")


@dataclass(frozen=True)
class PipelineCommand:
    """The command line of a pipeline, with the options that a launch and its checks look at.

    An option that a pipeline does not have is None. The pipelines document the options.
    """

    name: PipelineName
    argv: tuple[str, ...]
    bigquery: BigQueryEndpoints
    model: str
    output_detail: str
    write_method: str
    create_tables: bool
    output: str | None = None
    output_dataset: str | None = None
    subscription: str | None = None
    topic: str | None = None
    alert_topic: str | None = None
    input: str | None = None
    input_table: str | None = None
    input_query: str | None = None
    scorer: str | None = None
    vertex_endpoint: str | None = None
    vertex_api_endpoint: str | None = None
    torchserve_url: str | None = None
    options: Any = field(default=None, repr=False)

    def threshold_problem(self, calibrated: Mapping[str, float]) -> str | None:
        """Compares the thresholds among the flags with the model's; the problem as text, or None."""
        from pipelines import options

        return options.threshold_problem(self.options, calibrated)


def parse(name: PipelineName, argv: Sequence[str], temp_location: str, via: str) -> PipelineCommand:
    """Has a pipeline parse and check its flags.

    Args:
      name: of the pipeline.
      argv: its flags and Beam's.
      temp_location: of the launch; Beam's flag has the same name.
      via: "flex" or "direct".

    Raises:
      OptionError: an option does not fit the launch.
      SystemExit: a flag is unknown or wrong.
    """
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    from pipelines.options import JAVA_WRITE_METHOD, WRITE_METHODS

    entry = module(name)
    parser = entry.parser()
    options, beam_options = parser.parse(argv)
    if options.write_method == JAVA_WRITE_METHOD and via == "flex":
        raise OptionError(
            f"--write_method: expected a method without Java, which the image of the template does not have, "
            f"got {options.write_method!r}: use {WRITE_METHODS[0]}, or --via=direct on a machine with Java"
        )
    beam_options.view_as(GoogleCloudOptions).temp_location = temp_location
    entry.check_arguments(parser, options, beam_options)
    names = PipelineCommand.__dataclass_fields__.keys() - {"name", "argv", "bigquery", "options"}
    return PipelineCommand(
        name,
        tuple(argv),
        BigQueryEndpoints(options.bigquery_endpoint, options.bigquery_storage_endpoint),
        **{option: getattr(options, option) for option in names if hasattr(options, option)},
        options=options,
    )
