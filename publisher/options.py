"""The options of `anomaly publish`: declared, checked once, and turned into what they configure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from common.command import Parser
from common.options import OptionError, add_options, option, read_options
from common.output import add_format
from common.values import Number, at_least
from model.synthetic import frauds
from model.synthetic.cards import frauds as card_frauds
from publisher import malformed, patterns
from publisher.content import ContentOptions
from publisher.files import CsvFile, JsonLinesFile, ParquetFile
from publisher.forms import Form
from publisher.patterns import Pattern
from publisher.pubsub import PubSubTopic
from publisher.sink import Sink
from publisher.ulb import ULB

PERIOD_SECONDS: Final = 60.0
TIMEOUT_SECONDS: Final = 60.0
_MORE: Final = Number(0, whole=False)

_DESCRIPTION: Final = """\
Send synthetic card transactions to a Pub/Sub topic, or write them to a file: the 30 numbers of the ULB table,
or raw card payments (--spec card). Some of them are planted frauds, some messages are malformed. The planted
kind travels as a message attribute and, with --labels, goes to a file. The same seed gives the same
transactions."""

_EXAMPLES: Final = """\
  anomaly publish --topic projects/my-project/topics/transactions --rate 500 --duration 60
  anomaly publish --topic projects/my-project/topics/transactions --pattern spike --rate 100 \\
      --peak_rate 2000 --period 120
  anomaly publish --jsonl out/messages.jsonl --count 100000 --fraud_share 0.01 --malformed_share 0.01 \\
      --labels out/labels.parquet
  anomaly publish --topic projects/my-project/topics/transactions --input my-messages.jsonl.gz --rate 1000
  anomaly publish --parquet out/transactions.parquet --count 1000000 --start_time 2026-01-01T00:00:00Z
  anomaly publish --spec card --topic projects/my-project/topics/payments --rate 100 --duration 600
  anomaly publish --spec card --csv out/payments.csv --labelled --count 200000

exit status: 0 done; 1 messages could not be published; 2 wrong options; 130 ended by Ctrl-C, 143 by SIGTERM
(after a flush: what the summary calls confirmed has arrived).

{frauds}

{card_frauds}

{malformed}

load patterns:
  constant             --rate throughout
  ramp                 from --rate to --peak_rate in a straight line over --period, --peak_rate from then on
  spike                --rate, but --peak_rate for --width seconds in the middle of each --period
  burst                --peak_rate for the first --width seconds of each --period, then silence"""


@dataclass(frozen=True)
class DestinationOptions:
    """Destination of the messages: exactly one of topic, jsonl, parquet and csv."""

    topic: str | None = option(None, metavar="NAME", help="projects/PROJECT/topics/TOPIC")
    jsonl: Path | None = option(None, type=Path, metavar="FILE", help="one message a line; replaces the file")
    parquet: Path | None = option(
        None,
        type=Path,
        metavar="FILE",
        help="a table of transactions; malformed messages are left out",
    )
    csv: Path | None = option(None, type=Path, metavar="FILE", help="the same table as --parquet")
    labelled: bool = option(
        False,
        help="with --parquet or --csv: columns for training, the label (1: fraud) and the planted kind",
    )
    tee: Path | None = option(
        None, type=Path, metavar="FILE.jsonl", help="with --topic: a file of the same messages"
    )
    labels: Path | None = option(
        None,
        type=Path,
        metavar="FILE.parquet",
        help="file with index, transaction_id and kind of each message",
    )
    timeout: float | None = option(
        None,
        type=_MORE,
        metavar="SECONDS",
        help="with --topic: seconds after which a request, retries included, has failed "
        f"(default: {TIMEOUT_SECONDS:g})",
    )

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("topic", "jsonl", "parquet", "csv") if getattr(self, name)]
        if len(given) != 1:
            raise OptionError(
                "expected one of --topic, --jsonl, --parquet and --csv, "
                f"got {' and '.join(given) or 'none of them'}"
            )
        if self.labelled and not (self.parquet or self.csv):
            raise OptionError("--labelled: expected --parquet or --csv; a message never holds its label")
        for name in ("tee", "timeout"):
            if getattr(self, name) is not None and not self.topic:
                raise OptionError(f"--{name} goes with --topic: leave it out for a file")
        paths = [path for path in (self.jsonl, self.parquet, self.csv, self.tee, self.labels) if path]
        for path in paths:
            directory = path.absolute().parent
            if not directory.is_dir():
                raise OptionError(f"{path}: the directory {directory} does not exist; create it first")
        if len({path.absolute() for path in paths}) < len(paths):
            raise OptionError("expected files of different names, got the same twice")

    def open(self, form: Form = ULB) -> Sink:
        """Opens the destination.

        Args:
          form: of the messages.

        Raises:
          ValueError: the topic's name has a wrong form.
          PublishError: there are no credentials.
          OSError: the file cannot be written.
        """
        if self.topic:
            return PubSubTopic(self.topic, timeout=self.timeout or TIMEOUT_SECONDS)
        if self.jsonl:
            return JsonLinesFile(self.jsonl)
        if self.parquet:
            return ParquetFile(self.parquet, form, self.labelled)
        assert self.csv
        return CsvFile(self.csv, form, self.labelled)


@dataclass(frozen=True)
class LoadOptions:
    """The number of messages, and their rate."""

    count: int | None = option(None, type=at_least(1), metavar="N", help="messages, malformed ones included")
    duration: float | None = option(None, type=_MORE, metavar="SECONDS", help="end after this time")
    rate: float | None = option(
        None,
        metavar="N",
        help="messages a second (default: 0, which for constant is as fast as possible)",
    )
    pattern: str = option("constant", choices=tuple(patterns.PATTERNS), help="default: %(default)s")
    peak_rate: float | None = option(None, metavar="N", help="messages a second; for ramp, spike and burst")
    period: float | None = option(
        None,
        metavar="SECONDS",
        help=f"for ramp, spike and burst (default: {PERIOD_SECONDS:g})",
    )
    width: float | None = option(
        None, metavar="SECONDS", help="for spike and burst (default: a tenth of --period)"
    )

    def __post_init__(self) -> None:
        for name in patterns.UNUSED[self.pattern]:
            if getattr(self, name) is not None:
                raise OptionError(
                    f"--{name} means nothing to --pattern {self.pattern}: leave it out or change the pattern"
                )

    @property
    def expected(self) -> int | None:
        """Messages of the run at most; None where nobody knows."""
        due = self.make_pattern().due(self.duration) if self.duration else math.inf
        most = min(due, math.inf if self.count is None else self.count)
        return None if math.isinf(most) else math.ceil(most)

    def make_pattern(self) -> Pattern:
        """Makes the load pattern.

        Raises:
          ValueError: a parameter is missing or out of its range.
        """
        period = PERIOD_SECONDS if self.period is None else self.period
        return patterns.make(self.pattern, self.rate or 0.0, self.peak_rate, period, self.width)


@dataclass(frozen=True)
class PublishOptions:
    """All options of the command.

    Raises:
      OptionError: they do not fit together.
    """

    destination: DestinationOptions
    content: ContentOptions
    load: LoadOptions
    format: Literal["table", "json", "csv"]
    quiet: bool

    def __post_init__(self) -> None:
        if self.content.input and not self.destination.topic:
            raise OptionError("--input: expected --topic, to which its lines are sent")
        if not self.destination.topic and self.load.count is None and self.load.duration is None:
            raise OptionError("a file needs an end: pass --count or --duration")


def make_parser() -> Parser:
    """The parser; its help lists every kind of fraud, of malformed message, and of load pattern."""
    examples = _EXAMPLES.replace("{frauds}", _kinds("fraud", frauds.KINDS))
    examples = examples.replace("{card_frauds}", _kinds("fraud", card_frauds.KINDS, " with --spec card"))
    examples = examples.replace("{malformed}", _kinds("malformed", malformed.KINDS))
    parser = Parser("anomaly publish", _DESCRIPTION, examples)
    add_options(parser, DestinationOptions, "destination (exactly one of --topic, --jsonl, --parquet, --csv)")
    add_options(parser, ContentOptions, "messages")
    add_options(
        parser,
        LoadOptions,
        "how much, how fast (without an end, --topic runs until Ctrl-C, or simulated time until the present)",
    )
    add_format(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def parse(argv: Sequence[str] | None = None) -> PublishOptions:
    """Reads the command line.

    Raises:
      OptionError: the options do not fit together.
    """
    namespace = make_parser().parse_args(argv)
    return PublishOptions(
        read_options(DestinationOptions, namespace),
        read_options(ContentOptions, namespace),
        read_options(LoadOptions, namespace),
        namespace.format,
        namespace.quiet,
    )


def _kinds(
    word: str,
    kinds: Mapping[str, frauds.FraudKind | card_frauds.CardFraudKind | malformed.MalformedKind],
    where: str = "",
) -> str:
    lines = [f"  {kind.name:20} {kind.description}" for kind in kinds.values() if not _form(kind)]
    lines += [
        f"  {kind.name:20} {kind.description}; with --spec {form} alone"
        for kind in kinds.values()
        if (form := _form(kind))
    ]
    return "\n".join((f"{word} kinds{where}:", *lines))


def _form(kind: frauds.FraudKind | card_frauds.CardFraudKind | malformed.MalformedKind) -> str | None:
    return kind.form if isinstance(kind, malformed.MalformedKind) else None
