"""The record that a job on Dataflow carries of itself, from which `anomaly launch --update` starts.

Dataflow keeps Beam's options with the job and gives them back, but knows nothing of a pipeline's own. So the
record is an option of Beam's: every launch writes it, from whichever tool it comes.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor

from common.options import option_values

OPTION: Final = "job_record"
"""Name of the option among the options of Beam that a job has."""


class RecordOptions(PipelineOptions):
    """The option of Beam that holds the record. It is for programs: a command line leaves it out."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(f"--{OPTION}", help=argparse.SUPPRESS)


@dataclass(frozen=True)
class JobRecord:
    """The record.

    Attributes:
      options: the pipeline's own options by their names, defaults included; an option without a value is
        left out.
      steps: full names of the steps, "Detect/Score/..." among them.
      beam: the options of Beam by their names, as the command line has them.
    """

    options: dict[str, Any]
    steps: tuple[str, ...]
    beam: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> JobRecord:
        """Reads the value of the option."""
        content = json.loads(text)
        return cls(content["options"], tuple(content["steps"]), content["beam"])

    def text(self) -> str:
        """The value of the option."""
        return json.dumps(asdict(self))


def passed(beam_options: PipelineOptions) -> dict[str, Any]:
    """Returns the options of Beam that a command line passed. Later, pipeline and runner add their own."""
    return copy.deepcopy(beam_options.get_all_options(drop_default=True))


def record(pipeline: beam.Pipeline, options: Any, beam_passed: dict[str, Any]) -> JobRecord:
    """Makes the record of a pipeline that is built.

    Args:
      pipeline: with all its steps.
      options: the pipeline's own options.
      beam_passed: the options of Beam; see `passed`.
    """
    visitor = _Names()
    pipeline.visit(visitor)
    values = {name: value for name, value in option_values(options).items() if value is not None}
    return JobRecord(values, tuple(visitor.names), beam_passed)


def attach(pipeline: beam.Pipeline, options: Any, beam_passed: dict[str, Any]) -> None:
    """Adds the record to the options that Beam sends with the job."""
    text = record(pipeline, options, beam_passed).text()
    setattr(pipeline.options.view_as(RecordOptions), OPTION, text)


class _Names(PipelineVisitor):
    def __init__(self) -> None:
        self.names: list[str] = []

    def enter_composite_transform(self, transform_node: AppliedPTransform) -> None:
        self._add(transform_node)

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        self._add(transform_node)

    def _add(self, transform_node: AppliedPTransform) -> None:
        if transform_node.full_label:  # the root has none
            self.names.append(transform_node.full_label)
