"""Command-line options of the pipelines: declared with help and example, checked before anything runs."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from apache_beam.options.pipeline_options import PipelineOptions

from common import names
from model import artifact
from model.thresholds import SEVERITIES
from transforms import clients

_CALENDAR: Final = dt.date.max - dt.date.min
"""No two moments lie further apart, and no datetime can hold more."""

JAVA_WRITE_METHOD: Final = "storage_write_api"
"""The method that Beam expands by Java at launch. The image of the templates has no Java: every worker would
pull a Java runtime that the launcher alone needs, and the launcher would still have to fetch the expansion
service from Maven, which it cannot without a public address. So this one is launched directly."""

WRITE_METHODS: Final = ("storage_arrow", "streaming_inserts", "file_loads", JAVA_WRITE_METHOD)


class OptionsParser(argparse.ArgumentParser):
    """argparse with underscores in flags, as Beam has them, and without abbreviations.

    An abbreviated flag would be taken by this parser or by Beam's, whichever knows it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def parse(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, PipelineOptions]:
        """Splits `argv` into this program's options and Beam's.

        A flag that neither knows ends the program with the nearest name; Beam alone would drop it.
        """
        known, rest = self.parse_known_args(argv)
        beam_parser = _beam_parser()
        _, unknown = beam_parser.parse_known_args(rest)
        flags = [flag for flag in unknown if flag.startswith("-")] or unknown
        if flags:
            names = [*self._option_string_actions, *beam_parser._option_string_actions]
            name = flags[0].split("=", 1)[0]
            near = difflib.get_close_matches(name, names, 1)
            self.error(f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else ""))
        return known, PipelineOptions(rest)


def _beam_parser() -> argparse.ArgumentParser:
    # Beam's own class of parser is private, and insists on its own help.
    parser: Any = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        if "_add_argparse_args" in vars(options):
            options._add_argparse_args(parser)
    return parser


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """An argparse type for whole numbers from `minimum` on, to `maximum` where there is one."""

    minimum: int
    maximum: int | None = None

    def __call__(self, text: str) -> int:
        """The value as a number."""
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < self.minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise argparse.ArgumentTypeError(f"{value} is above {self.maximum}")
        return value


at_least = AtLeast


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the alerting rule."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="artifact directory of the trained model, local or gs://. Example: gs://my-bucket/model",
    )
    group.add_argument(
        "--output_detail",
        choices=("compact", "full"),
        default="compact",
        help="columns of the scores: compact, or full for all outputs of the model (default: %(default)s)",
    )
    for severity in SEVERITIES[1:]:
        group.add_argument(
            f"--{severity}_threshold",
            type=float,
            metavar="SCORE",
            help=f"lowest anomaly_score of severity {severity}, in place of the one calibrated with the "
            "model. Example: 25.0",
        )
    group.add_argument(
        "--min_severity",
        choices=SEVERITIES[1:],
        default=SEVERITIES[1],
        help="lowest severity that raises an alert (default: %(default)s)",
    )


def add_message_arguments(parser: argparse.ArgumentParser) -> None:
    """What a message may be; see transforms.message."""
    group = parser.add_argument_group("messages")
    group.add_argument(
        "--max_message_bytes",
        type=at_least(1),
        default=64 * 1024,
        metavar="N",
        help="longer messages become dead letters without being decoded (default: %(default)s)",
    )
    group.add_argument(
        "--max_event_lead_seconds",
        type=at_least(0, _CALENDAR.days * 86_400),
        default=86_400,
        metavar="N",
        help="how far event_time may lie ahead of the publish time (default: %(default)s)",
    )
    group.add_argument(
        "--max_event_age_days",
        type=at_least(1, _CALENDAR.days),
        default=3650,
        metavar="N",
        help="how far event_time may lie behind the publish time (default: %(default)s; BigQuery takes "
        "streamed rows into partitions of the last ten years)",
    )


def add_sink_arguments(parser: argparse.ArgumentParser, files: bool) -> None:
    """Where scores, alerts and dead letters go; with `files` to Parquet too, else --output is no option."""
    either = " (one of --output_dataset and --output at least)" if files else ""
    group = parser.add_argument_group(f"sinks{either}")
    group.add_argument(
        "--output_dataset",
        required=not files,
        type=names.DATASET,
        metavar="PROJECT.DATASET",
        help="BigQuery dataset with the tables scores, alerts and error_records. Example: my-project.anomaly",
    )
    parser.set_defaults(output=None)
    if files:
        group.add_argument(
            "--output",
            metavar="DIR",
            help="directory for Parquet files scores-*, alerts-* and error_records-*, local or gs://. "
            "Example: gs://my-bucket/scored",
        )
    group.add_argument(
        "--write_method",
        choices=WRITE_METHODS,
        default=WRITE_METHODS[0],
        help="how rows reach BigQuery: storage_arrow (Arrow rows to the Storage Write API, the fastest), or "
        "one of the methods of Beam's WriteToBigQuery; storage_write_api needs Java at launch, which "
        "templates have not; file_loads needs --temp_location=gs://... (default: %(default)s)",
    )
    group.add_argument(
        "--create_tables",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="create the tables and views of --output_dataset that are missing, at launch (default: yes)",
    )
    clients.add_arguments(parser)


def resolve_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> artifact.Manifest:
    """Reads and verifies --model and merges the thresholds given as options into its manifest's.

    Ends the program with a message that names the flag when anything is wrong.
    """
    try:
        manifest = artifact.verify(args.model)
    except artifact.ArtifactError as error:
        parser.error(f"--model: {error}")
    except Exception as error:  # whatever Cloud Storage's client raises: no bucket, no permission, no network
        parser.error(f"--model: cannot read {args.model}: {error}")
    problem = threshold_problem(args, manifest.thresholds)
    if problem:
        parser.error(problem)
    return dataclasses.replace(manifest, thresholds={**manifest.thresholds, **thresholds_given(args)})


def check_thresholds(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program when the thresholds that were given cannot be, whatever the model's are."""
    problem = threshold_problem(args, {})
    if problem:
        parser.error(problem)


def threshold_problem(args: argparse.Namespace, calibrated: Mapping[str, float]) -> str | None:
    """What is wrong with the given thresholds beside those of the model's manifest; None if sound."""
    given = thresholds_given(args)
    for severity, value in given.items():
        if math.isnan(value):  # which is in no order, so the comparison below would let it pass
            return f"--{severity}_threshold: nan is no number; give one such as 25.0"
    merged = {**calibrated, **given}
    steps = [(severity, merged[severity]) for severity in SEVERITIES[1:] if severity in merged]
    for (low, below), (high, above) in itertools.pairwise(steps):
        if below > above:
            named = {
                severity: f"--{severity}_threshold={merged[severity]}"
                if severity in given
                else f"the model's threshold of {severity}, {merged[severity]}"
                for severity in (low, high)
            }
            return f"{named[low]} is above {named[high]}"
    return None


def thresholds_given(args: argparse.Namespace) -> dict[str, float]:
    """The thresholds that were given as options, by severity."""
    values = {severity: getattr(args, f"{severity}_threshold") for severity in SEVERITIES[1:]}
    return {severity: value for severity, value in values.items() if value is not None}


def require_sink(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program unless scores and dead letters have a place to go."""
    if not (args.output_dataset or args.output):
        parser.error("give --output_dataset=PROJECT.DATASET or --output=DIR: scores need a place to go")
