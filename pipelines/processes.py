"""The number of processes of a batch job on this machine, as an option and in Beam's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from common.options import OptionError, option
from common.values import at_least
from model.serving.options import usable_cores
from transforms.bigquery.methods import METHODS, NEEDS, Method

RUNNER: Final = "FnApiRunner"
"""The runner of a batch job on this machine."""
PROCESS_RUNNER: Final = "local.process_runner.ProcessRunner"
"""The runner of it in several processes; Beam takes the dotted name of a class."""

_BEAMS_FLAGS: Final = ("--direct_running_mode", "--direct_num_workers")


@dataclass(frozen=True)
class ProcessOptions:
    """The processes of a batch job on this machine."""

    processes: int = option(
        1,
        type=at_least(0),
        metavar="N",
        help="processes that share the work of a job on this machine, 0 for one a core. They share files, "
        "pieces of 32 MB of lines or Parquet, and streams of BigQuery (default: %(default)s)",
    )

    def check(self, beam_options: PipelineOptions, write_method: Method) -> None:
        """Refuses what several processes of this machine do not run, and what contradicts their number.

        Raises:
          OptionError: another flag does not go with --processes.
        """
        if self.processes == 1:
            return
        runner = beam_options.view_as(StandardOptions).runner
        if runner and runner.rpartition(".")[2].lower() != RUNNER.lower():
            raise OptionError(
                f"--processes: expected --runner={RUNNER}, the default, with it, got --runner={runner}: "
                "leave out one of the two; on Dataflow, --num_workers and --max_num_workers are the number "
                "of workers"
            )
        passed = {word.partition("=")[0] for word in beam_options._flags or ()}
        for flag in _BEAMS_FLAGS:
            if flag in passed:
                raise OptionError(
                    f"{flag}: expected no --processes with it, which sets it: leave out one of them"
                )
        if NEEDS[write_method].java:
            raise OptionError(
                "--processes: expected a --write_method without Java, whose steps Beam runs in containers, "
                f"got {write_method!r}: use {METHODS[0]}, or leave out --processes"
            )

    def apply(self, beam_options: PipelineOptions) -> None:
        """Sets Beam's options for several processes; those of one are Beam's defaults."""
        number = self.processes or usable_cores()
        if number > 1:
            direct = beam_options.view_as(DirectOptions)
            direct.direct_running_mode, direct.direct_num_workers = "multi_processing", number
            beam_options.view_as(StandardOptions).runner = PROCESS_RUNNER
