"""Options of both pipelines, one dataclass a concern, and the door: a command line in, typed options out."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions

from common.command import Parser
from common.limits import MAX_EVENT_AGE_DAYS, MAX_MESSAGE_BYTES
from common.names import DATASET, SHA256
from common.options import OptionError, option, read_options
from common.values import Number, at_least
from features.roles import OPTIONS, RoleError, Roles
from model import artifact
from model.live import ForeignError, check_spec
from model.manifest import MANIFEST_FILE
from model.thresholds import SEVERITIES
from transforms.bigquery.methods import METHODS, Method
from transforms.forms import Encoding
from transforms.message import MessageRules
from transforms.profiles import SECONDS

_CALENDAR: Final = dt.date.max - dt.date.min
"""No two moments lie further apart, and no datetime can hold more."""
_DATASET_HELP: Final = (
    "BigQuery dataset with the tables scores, alerts and error_records. Example: my-project.anomaly"
)
_T = TypeVar("_T")


@dataclass(frozen=True)
class MessageOptions:
    """The rules that a message has to keep, where id, account and time are, and what travels with the row.

    Raises:
      OptionError: a column is named that another field is read from, or a name of --pass_through is empty, or
        there twice.
    """

    max_message_bytes: int = option(
        MAX_MESSAGE_BYTES,
        type=at_least(1),
        metavar="N",
        help="longer messages become dead letters without being decoded (default: %(default)s)",
    )
    max_event_lead_seconds: int = option(
        86_400,
        type=at_least(0, _CALENDAR.days * 86_400),
        metavar="N",
        help="how far event_time may lie ahead of the publish time (default: %(default)s)",
    )
    max_event_age_days: int = option(
        MAX_EVENT_AGE_DAYS,
        type=at_least(1, _CALENDAR.days),
        metavar="N",
        help="how far event_time may lie behind the publish time (default: %(default)s; BigQuery takes "
        "streamed rows into partitions of the last ten years)",
    )
    id_column: str | None = option(
        None,
        metavar="NAME",
        help="column, or key of a message, that holds the id of a transaction. Example: transactionId "
        "(default: transaction_id)",
    )
    account_column: str | None = option(
        None,
        metavar="NAME",
        help="column, or key of a message, that holds its account. Example: card_id (default: account_id)",
    )
    event_time_column: str | None = option(
        None,
        metavar="NAME",
        help="column, or key of a message, that holds its time. Example: timestamp (default: event_time)",
    )

    pass_through: str | None = option(
        None,
        metavar="NAME,NAME",
        help="keys at the top of a message, or columns of a table or file, that travel into scores, alerts "
        "and their messages, as one JSON object in the column pass_through. Example: card_type,load_id",
    )
    trace_messages: bool = option(
        False,
        help="message id and publish time travel into scores, alerts and their messages, so that rows can be "
        "joined to what was published, and latency is known step by step; attributes travel into the dead "
        "letters of rows that cannot be scored; parsing takes a tenth longer "
        "(default: no)",
    )

    def __post_init__(self) -> None:
        self.roles()
        names = self.passed
        if not all(names) or len({*names}) < len(names):
            raise OptionError(
                "--pass_through: expected different names with a comma between them, got "
                f"{self.pass_through!r}"
            )

    def roles(self, declared: Roles | None = None) -> Roles:
        """Returns the columns of id, account and time.

        Args:
          declared: those of the model's feature spec, which the options replace.

        Raises:
          OptionError: a column is named that another field is read from.
        """
        names = {
            "transaction_id": self.id_column,
            "account_id": self.account_column,
            "event_time": self.event_time_column,
        }
        named: dict[str, Any] = {role: name for role, name in names.items() if name is not None}
        try:
            return dataclasses.replace(declared or Roles(), **named)
        except RoleError as error:
            raise OptionError(f"{OPTIONS[error.role]}: {error.reason}") from error

    @property
    def passed(self) -> tuple[str, ...]:
        """The names of --pass_through."""
        return tuple(self.pass_through.split(",")) if self.pass_through else ()

    def rules(self, manifest: artifact.Manifest, **more: Any) -> MessageRules:
        """Returns the rules for `Parse`.

        Args:
          manifest: of the model, whose features a message has.
          more: further fields of MessageRules.
        """
        declared = manifest.spec.roles
        return MessageRules(
            max_bytes=self.max_message_bytes,
            max_lead=dt.timedelta(seconds=self.max_event_lead_seconds),
            max_age=dt.timedelta(days=self.max_event_age_days),
            roles=self.roles(declared),
            encoding=Encoding(manifest.spec, manifest.learnt),
            pass_through=tuple(dict.fromkeys((*declared.pass_through, *self.passed))),
            trace_messages=self.trace_messages,
            **more,
        )


@dataclass(frozen=True)
class DetectionOptions:
    """The model and the alerting rule."""

    model: str = option(
        metavar="DIR",
        help="artifact directory of the trained model, local or gs://. A job scores with the model that is "
        "there at launch; its workers refuse one that was written into the same directory since. "
        "Example: gs://my-bucket/model",
    )
    model_sha256: str | None = option(
        None,
        type=SHA256,
        metavar="DIGEST",
        help="sha256 of the manifest.json that must be in --model, which lists those of its files; launch "
        "and workers refuse another model. sha256sum manifest.json shows it where the model is released. "
        "Example: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    )
    shadow_model: str | None = option(
        None,
        metavar="DIR",
        help="artifact directory of a second model with the same feature spec, local or gs://. It scores "
        "beside the first into the columns shadow_score, shadow_severity and shadow_version, and raises no "
        "alert; anomaly query shadow_agreement compares the two. Example: gs://my-bucket/candidate",
    )
    output_detail: Literal["compact", "full"] = option(
        "compact",
        help="columns of the scores: compact, or full for all outputs of the model (default: %(default)s)",
    )
    medium_threshold: float | None = option(
        None,
        type=Number(whole=False),
        metavar="SCORE",
        help="lowest anomaly_score of severity medium, in place of the one calibrated with the model. "
        "Example: 25.0",
    )
    high_threshold: float | None = option(
        None,
        type=Number(whole=False),
        metavar="SCORE",
        help="lowest anomaly_score of severity high, in place of the one calibrated with the model. "
        "Example: 25.0",
    )
    min_severity: str = option(
        SEVERITIES[1],
        choices=SEVERITIES[1:],
        help="lowest severity that raises an alert (default: %(default)s)",
    )

    def __post_init__(self) -> None:
        self.thresholds({})

    @property
    def refresh_seconds(self) -> int:
        """Seconds between two looks for a new model; 0 for a job that keeps the model of its launch."""
        return 0

    @property
    def given_thresholds(self) -> dict[str, float]:
        """The thresholds among the options, by severity; they hold for every model of the job."""
        values = {severity: getattr(self, f"{severity}_threshold") for severity in SEVERITIES[1:]}
        return {severity: value for severity, value in values.items() if value is not None}

    def thresholds(self, calibrated: Mapping[str, float]) -> dict[str, float]:
        """Returns the thresholds by severity: those given as options, otherwise the model's.

        Args:
          calibrated: those of the model's manifest.

        Raises:
          OptionError: a threshold is no number, or a lower severity has the higher one.
        """
        given = self.given_thresholds
        for severity, value in given.items():
            if math.isnan(value):  # which is in no order, so the comparison below would let it pass
                raise OptionError(f"--{severity}_threshold: expected a number such as 25.0, got nan")
        merged = {**calibrated, **given}
        steps = [severity for severity in SEVERITIES[1:] if severity in merged]
        for low, high in itertools.pairwise(steps):
            if merged[low] > merged[high]:
                names = {
                    severity: f"--{severity}_threshold={merged[severity]}"
                    if severity in given
                    else f"the model's threshold of {severity}, {merged[severity]}"
                    for severity in (low, high)
                }
                raise OptionError(f"{names[low]} is above {names[high]}: pass thresholds that ascend")
        return merged

    def manifest(self) -> artifact.Manifest:
        """Reads and verifies the model; returns its manifest with the thresholds of the options.

        Raises:
          OptionError: the model or its shadow cannot be read, they have different features, or the thresholds
            do not fit those of the options.
        """
        manifest = _verified("--model", self.model).manifest
        if self.model_sha256 not in (None, manifest.digest):
            raise OptionError(
                f"--model_sha256: expected {self.model_sha256} of {MANIFEST_FILE} in {self.model}, got "
                f"{manifest.digest}: put the released model there, or pass the sha256 of this one"
            )
        if self.shadow_model:
            shadow = _verified("--shadow_model", self.shadow_model)
            try:
                check_spec(shadow, manifest.spec, "--model; train it with the same one")
            except ForeignError as error:
                raise OptionError(f"--shadow_model: {error}") from error
        return dataclasses.replace(manifest, thresholds=self.thresholds(manifest.thresholds))


def _verified(flag: str, uri: str) -> artifact.Artifact:
    try:
        return artifact.read(uri)
    except artifact.ArtifactError as error:
        raise OptionError(f"{flag}: {error}") from error
    except Exception as error:  # whatever Cloud Storage's client raises: no permission, no network
        raise OptionError(f"{flag}: cannot read {uri}: {error}") from error


@dataclass(frozen=True)
class StreamDetectionOptions(DetectionOptions):
    """The model of a stream, which may be replaced while it runs."""

    model_refresh_seconds: int = option(
        0,
        type=at_least(0, 86_400),
        metavar="N",
        help="look for a new model in --model every so many seconds, and score with it from then on; it must "
        "have the same feature spec, and anomaly model promote puts it there. 0 keeps the model of the "
        "launch. Example: 60 (default: %(default)s)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_sha256 and self.model_refresh_seconds:
            raise OptionError(
                "--model_sha256: it holds the job to one model, and --model_refresh_seconds takes others; "
                "pass one of them"
            )

    @property
    def refresh_seconds(self) -> int:
        """Seconds between two looks for a new model."""
        return self.model_refresh_seconds


@dataclass(frozen=True)
class TableOptions:
    """The tables in BigQuery that take scores, alerts and dead letters."""

    output_dataset: str | None = option(None, type=DATASET, metavar="PROJECT.DATASET", help=_DATASET_HELP)
    write_method: Method = option(
        METHODS[0],
        help="how rows reach BigQuery: storage_arrow (Arrow rows to the Storage Write API, the fastest; a "
        "batch job commits them at its end, which must come within a day), or one of the methods of Beam's "
        "WriteToBigQuery; storage_write_api needs Java at launch, which templates do not have; file_loads "
        "needs --temp_location=gs://... (default: %(default)s)",
    )
    create_tables: bool = option(
        True,
        help="create the tables and views of --output_dataset that are missing, at launch (default: yes)",
    )
    window_seconds: int = option(
        0,
        type=at_least(0, 86_400),
        metavar="N",
        help="sum scores up by windows of event time of so many seconds into the table score_windows; 0 for "
        "no windows. Example: 60 (default: %(default)s)",
    )

    profile_every: int = option(
        10,
        type=at_least(0),
        metavar="N",
        help="count every N-th scored row into the table feature_profiles, which shows drift; 0 for no "
        "profiles. Not with another --score_field (default: %(default)s)",
    )
    profile_seconds: int = option(
        SECONDS,
        type=at_least(0, 3600),
        metavar="N",
        help="how often a worker of a stream writes what it counted, a row a feature; 0 after each bundle "
        "(default: %(default)s)",
    )

    def __post_init__(self) -> None:
        if self.window_seconds and not self.output_dataset:
            raise OptionError("--window_seconds fills a table: pass --output_dataset as well")


@dataclass(frozen=True)
class RequiredTableOptions(TableOptions):
    """The tables of a job that writes nothing but tables."""

    output_dataset: str = option(type=DATASET, metavar="PROJECT.DATASET", help=_DATASET_HELP)


def parse_options(
    parser: Parser, options: type[_T], argv: Sequence[str] | None = None
) -> tuple[_T, PipelineOptions]:
    """Splits a command line into a pipeline's options and Beam's.

    Args:
      parser: has the flags of the options.
      options: the dataclass to make.
      argv: the command line; that of the process when None.

    Raises:
      OptionError: the options do not fit, or neither side knows a flag. Beam alone would drop it.
    """
    namespace, rest = parser.parse_known_args(argv)
    beams = beam_parser()
    _, unknown = beams.parse_known_args(rest)
    flags = [flag for flag in unknown if flag.startswith("-")] or unknown
    if flags:
        names = [*parser._option_string_actions, *beams._option_string_actions]
        name = flags[0].split("=", 1)[0]
        near = difflib.get_close_matches(name, names, 1)
        raise OptionError(f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else ""))
    return read_options(options, namespace), PipelineOptions(rest)


def beam_parser() -> argparse.ArgumentParser:
    """Makes a parser of all options of Beam."""
    # Beam's own class of parser is private, and insists on its own help.
    parser: Any = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        if "_add_argparse_args" in vars(options):
            options._add_argparse_args(parser)
    return parser
