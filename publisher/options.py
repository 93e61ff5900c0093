"""The options of `anomaly publish`: declared, checked once, and turned into what they configure."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from common.command import Parser
from common.options import OptionError, add_options, option, read_options
from common.output import add_format
from common.values import SHARE, Number, at_least
from model.synthetic import frauds
from model.synthetic.generator import CYCLE_TRANSACTIONS, FRAUD_SHARE, TransactionGenerator
from publisher import malformed, patterns
from publisher.files import JsonLinesFile, ParquetFile
from publisher.messages import FileSource, MessageSource, Source, default_start_time
from publisher.patterns import Pattern
from publisher.pubsub import PubSubTopic
from publisher.sink import Sink

PERIOD_SECONDS: Final = 60.0
TIMEOUT_SECONDS: Final = 60.0
_MORE: Final = Number(0, whole=False)

_DESCRIPTION: Final = """\
Send synthetic card transactions to a Pub/Sub topic, or write them to a file. Some of them are planted frauds,
some messages are malformed. The planted kind travels as a message attribute and, with --labels, goes to a
file. The same seed gives the same transactions."""

_EXAMPLES: Final = """\
  anomaly publish --topic projects/my-project/topics/transactions --rate 500 --duration 60
  anomaly publish --topic projects/my-project/topics/transactions --pattern spike --rate 100 \\
      --peak_rate 2000 --period 120
  anomaly publish --jsonl out/messages.jsonl --count 100000 --fraud_share 0.01 --malformed_share 0.01 \\
      --labels out/labels.parquet
  anomaly publish --topic projects/my-project/topics/transactions --input my-messages.jsonl.gz --rate 1000
  anomaly publish --parquet out/transactions.parquet --count 1000000 --start_time 2026-01-01T00:00:00Z

exit status: 0 done; 1 messages could not be published; 2 wrong options; 130 ended by Ctrl-C, 143 by SIGTERM
(after a flush: what the summary calls confirmed has arrived).

{frauds}

{malformed}

load patterns:
  constant             --rate throughout
  ramp                 from --rate to --peak_rate in a straight line over --period, --peak_rate from then on
  spike                --rate, but --peak_rate for --width seconds in the middle of each --period
  burst                --peak_rate for the first --width seconds of each --period, then silence"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _time(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"expected a time with its offset such as 2026-01-01T00:00:00Z, got {text!r}"
        )
    return moment


@dataclass(frozen=True)
class DestinationOptions:
    """Destination of the messages: exactly one of topic, jsonl and parquet."""

    topic: str | None = option(None, metavar="NAME", help="projects/PROJECT/topics/TOPIC")
    jsonl: Path | None = option(None, type=Path, metavar="FILE", help="one message a line; replaces the file")
    parquet: Path | None = option(
        None,
        type=Path,
        metavar="FILE",
        help="keys, event_time and the 30 features as columns; malformed messages are left out",
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
        given = [f"--{name}" for name in ("topic", "jsonl", "parquet") if getattr(self, name)]
        if len(given) != 1:
            raise OptionError(
                f"expected one of --topic, --jsonl and --parquet, got {' and '.join(given) or 'none of them'}"
            )
        for name in ("tee", "timeout"):
            if getattr(self, name) is not None and not self.topic:
                raise OptionError(f"--{name} goes with --topic: leave it out for a file")
        paths = [path for path in (self.jsonl, self.parquet, self.tee, self.labels) if path]
        for path in paths:
            directory = path.absolute().parent
            if not directory.is_dir():
                raise OptionError(f"{path}: the directory {directory} does not exist; create it first")
        if len({path.absolute() for path in paths}) < len(paths):
            raise OptionError("expected files of different names, got the same twice")

    def open(self) -> Sink:
        """Opens the destination.

        Raises:
          ValueError: the topic's name has a wrong form.
          PublishError: there are no credentials.
          OSError: the file cannot be written.
        """
        if self.topic:
            return PubSubTopic(self.topic, timeout=self.timeout or TIMEOUT_SECONDS)
        if self.jsonl:
            return JsonLinesFile(self.jsonl)
        assert self.parquet
        return ParquetFile(self.parquet)


@dataclass(frozen=True)
class ContentOptions:
    """The messages themselves: synthetic ones, or the lines of a file."""

    input: Path | None = option(
        None,
        type=Path,
        metavar="FILE",
        help="with --topic: send the lines of this file, each as a message, in place of synthetic ones; "
        ".gz is decompressed",
    )
    seed: int = option(0, type=at_least(0), metavar="N", help="default: %(default)s")
    fraud_share: float = option(
        FRAUD_SHARE,
        type=Number(0, 0.9, whole=False),
        metavar="SHARE",
        help="share of planted frauds, 0 to 0.9 (default: %(default)s, that of the real data)",
    )
    fraud_kinds: tuple[str, ...] | None = option(
        None, type=_names, metavar="A,B", help="default: all, in equal shares"
    )
    malformed_share: float = option(
        0.0, type=SHARE, metavar="SHARE", help="share of malformed messages, 0 to 1 (default: %(default)s)"
    )
    malformed_kinds: tuple[str, ...] | None = option(
        None, type=_names, metavar="A,B", help="default: all, in equal shares"
    )
    accounts: int = option(2_000, type=at_least(1), metavar="N", help="how many (default: %(default)s)")
    merchants: int = option(500, type=at_least(1), metavar="N", help="how many (default: %(default)s)")
    cycle: int | None = option(
        None,
        type=at_least(1),
        metavar="N",
        help="transactions in the two days over which Time runs; default: --count, so that a run shows "
        f"the whole rhythm of day and night, otherwise {CYCLE_TRANSACTIONS}",
    )
    event_time: Literal["now", "simulated"] | None = option(
        None,
        help="now: the clock when a message is made, just before it is sent; simulated: --start_time and the "
        "time that has passed in the stream. Default: now with --topic, simulated with a file",
    )
    start_time: dt.datetime | None = option(
        None,
        type=_time,
        metavar="RFC3339",
        help="start of simulated time, for example 2026-01-01T00:00:00Z; default: midnight UTC two days ago. "
        "Pass it to get the same file another day",
    )

    def __post_init__(self) -> None:
        for word in ("fraud", "malformed"):
            if getattr(self, f"{word}_kinds") is not None and not getattr(self, f"{word}_share"):
                raise OptionError(f"--{word}_kinds: expected --{word}_share above 0, got 0")
        if self.input:
            synthetic = dataclasses.fields(self)[1:]
            given = [f"--{field.name}" for field in synthetic if getattr(self, field.name) != field.default]
            if given:
                raise OptionError(f"--input: its lines are sent as they are: leave out {', '.join(given)}")

    def source(self, is_simulated: bool, count: int | None) -> Source:
        """Makes the source of messages.

        Args:
          is_simulated: whether event times are simulated where --event_time does not say.
          count: messages of the whole run, if there is an end.

        Raises:
          ValueError: an option is out of its range, or a kind is unknown.
          OSError: --input cannot be read.
        """
        if self.input:
            return FileSource(self.input)
        is_simulated = is_simulated if self.event_time is None else self.event_time == "simulated"
        if self.start_time and not is_simulated:
            raise OptionError("--start_time: expected --event_time simulated, got now")
        generator = TransactionGenerator(
            seed=self.seed,
            fraud_share=self.fraud_share,
            fraud_kinds=tuple(frauds.KINDS) if self.fraud_kinds is None else self.fraud_kinds,
            accounts=self.accounts,
            merchants=self.merchants,
            cycle=self.cycle or count or CYCLE_TRANSACTIONS,
        )
        return MessageSource(
            generator,
            malformed_share=self.malformed_share,
            malformed_kinds=tuple(malformed.KINDS) if self.malformed_kinds is None else self.malformed_kinds,
            start_time=(self.start_time or default_start_time()) if is_simulated else None,
        )


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
    examples = _EXAMPLES.replace("{frauds}", _kinds("fraud", frauds.KINDS)).replace(
        "{malformed}", _kinds("malformed", malformed.KINDS)
    )
    parser = Parser("anomaly publish", _DESCRIPTION, examples)
    add_options(parser, DestinationOptions, "destination (exactly one of --topic, --jsonl, --parquet)")
    add_options(parser, ContentOptions, "messages")
    add_options(parser, LoadOptions, "how much, how fast (without an end, --topic runs until Ctrl-C)")
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


def _kinds(word: str, kinds: dict[str, frauds.FraudKind] | dict[str, malformed.MalformedKind]) -> str:
    lines = [f"  {kind.name:20} {kind.description}" for kind in kinds.values()]
    return "\n".join((f"{word} kinds:", *lines))
