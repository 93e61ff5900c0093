"""The options of `python -m publisher`: declared, checked, and turned into what they configure."""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path
from typing import Final

from model.synthetic import frauds
from model.synthetic.generator import CYCLE_TRANSACTIONS, FRAUD_SHARE, TransactionGenerator
from publisher import malformed, patterns
from publisher.files import JsonLinesFile, ParquetFile
from publisher.messages import MessageSource, default_start_time
from publisher.patterns import Pattern
from publisher.pubsub import PubSubTopic
from publisher.sink import Sink

NOW, SIMULATED = "now", "simulated"
PERIOD_SECONDS: Final = 60.0
TIMEOUT_SECONDS: Final = 60.0

_UNUSED: Final = {
    "constant": ("peak_rate", "period", "width"),
    "ramp": ("width",),
    "spike": (),
    "burst": ("rate",),
}
"""The options of the load that a pattern does not look at."""

_DESCRIPTION: Final = """\
Send synthetic card transactions to a Pub/Sub topic, or write them to a file. Some of them are planted frauds,
some messages are malformed; what was planted travels as a message attribute and, with --labels, goes to a
file. The same seed gives the same transactions."""

_EXAMPLES: Final = """\
examples:
  python -m publisher --topic projects/my-project/topics/transactions --rate 500 --duration 60
  python -m publisher --topic projects/my-project/topics/transactions --pattern spike --rate 100 \\
      --peak-rate 2000 --period 120
  python -m publisher --jsonl out/messages.jsonl --count 100000 --fraud-share 0.01 --malformed-share 0.01 \\
      --labels out/labels.parquet
  python -m publisher --parquet out/transactions.parquet --count 1000000 --start-time 2026-01-01T00:00:00Z

exit status: 0 done; 1 messages could not be published; 2 wrong options; 130 ended by Ctrl-C, 143 by SIGTERM
(after a flush: what the summary calls confirmed has arrived)."""


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help lists every kind of fraud, of malformed message, and of load pattern."""
    parser = argparse.ArgumentParser(
        prog="python -m publisher",
        description=_DESCRIPTION,
        epilog="\n\n".join(
            (_kinds("fraud", frauds.KINDS), _kinds("malformed", malformed.KINDS), _pattern_help(), _EXAMPLES)
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("destination (exactly one)").add_mutually_exclusive_group(required=True)
    where.add_argument("--topic", metavar="NAME", help="projects/PROJECT/topics/TOPIC")
    where.add_argument("--jsonl", type=Path, metavar="FILE", help="one message a line; replaces the file")
    where.add_argument(
        "--parquet",
        type=Path,
        metavar="FILE",
        help="keys, event_time and the 30 features as columns; malformed messages are left out",
    )
    also = parser.add_argument_group("beside it")
    also.add_argument("--tee", type=Path, metavar="FILE.jsonl", help="with --topic: what is published, too")
    also.add_argument(
        "--labels", type=Path, metavar="FILE.parquet", help="index, transaction_id and kind of each message"
    )
    what = parser.add_argument_group("what is sent")
    what.add_argument("--seed", type=int, default=0, help="default %(default)s")
    what.add_argument(
        "--fraud-share",
        type=float,
        default=FRAUD_SHARE,
        help="share of planted frauds, 0 to 0.9; default %(default)s, that of the real data",
    )
    what.add_argument("--fraud-kinds", metavar="A,B", help="default: all, in equal shares")
    what.add_argument(
        "--malformed-share",
        type=float,
        default=0.0,
        help="share of malformed messages, 0 to 1; default %(default)s",
    )
    what.add_argument("--malformed-kinds", metavar="A,B", help="default: all, in equal shares")
    what.add_argument("--accounts", type=int, default=2_000, help="how many; default %(default)s")
    what.add_argument("--merchants", type=int, default=500, help="how many; default %(default)s")
    what.add_argument(
        "--cycle",
        type=int,
        help="transactions in the two days over which Time runs; default: --count, so that a run shows "
        f"the whole rhythm of day and night, or else {CYCLE_TRANSACTIONS}",
    )
    what.add_argument(
        "--event-time",
        choices=(NOW, SIMULATED),
        help="now: the clock when a message is made, just before it is sent; simulated: --start-time and the "
        "time that has passed in the stream. Default: now with --topic, simulated with a file",
    )
    what.add_argument(
        "--start-time",
        metavar="RFC3339",
        help="start of simulated time, for example 2026-01-01T00:00:00Z; default: midnight UTC two days ago. "
        "Give it to get the same file another day",
    )
    load = parser.add_argument_group("how much, how fast (without an end, --topic runs until Ctrl-C)")
    load.add_argument("--count", type=int, help="messages, malformed ones included")
    load.add_argument("--duration", type=float, metavar="SECONDS")
    load.add_argument(
        "--rate", type=float, help="messages a second; default 0, which for constant is as fast as possible"
    )
    load.add_argument("--pattern", choices=patterns.PATTERNS, default="constant", help="default %(default)s")
    load.add_argument("--peak-rate", type=float, help="messages a second; for ramp, spike and burst")
    load.add_argument(
        "--period", type=float, help=f"seconds; for ramp, spike and burst; default {PERIOD_SECONDS:g}"
    )
    load.add_argument(
        "--width", type=float, help="seconds; for spike and burst; default: a tenth of --period"
    )
    load.add_argument(
        "--timeout",
        type=float,
        help="with --topic: seconds after which a request, retries included, has failed; "
        f"default {TIMEOUT_SECONDS:g}",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format", choices=("text", "json"), default="text", help="of the summary, on stdout"
    )
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse combinations that make no sense.

    Raises:
      ValueError: names the option and says what to do.
    """
    if options.tee and not options.topic:
        raise ValueError("--tee goes with --topic; with --jsonl the file itself is the copy")
    if not options.topic and options.count is None and options.duration is None:
        raise ValueError("a file needs an end: give --count or --duration")
    for name in ("count", "duration", "timeout", "cycle"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name}: {value} is not greater than 0")
    if options.timeout is not None and not options.topic:
        raise ValueError("--timeout goes with --topic; a file has no requests")
    for name in _UNUSED[options.pattern]:
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} means nothing to --pattern {options.pattern}; leave it out or change the pattern"
            )
    if options.malformed_kinds is not None and not options.malformed_share:
        raise ValueError("--malformed-kinds: no message is malformed; give --malformed-share as well")
    if options.fraud_kinds is not None and not options.fraud_share:
        raise ValueError("--fraud-kinds: no fraud is planted; give --fraud-share as well")
    if options.start_time and event_time_mode(options) == NOW:
        raise ValueError("--start-time goes with --event-time simulated")
    paths = [path for path in (options.jsonl, options.parquet, options.tee, options.labels) if path]
    for path in paths:
        if not path.absolute().parent.is_dir():
            raise ValueError(
                f"{path}: the directory {path.absolute().parent} does not exist; create it first"
            )
    if len({path.absolute() for path in paths}) < len(paths):
        raise ValueError("the files given are the same; give each its own name")


def event_time_mode(options: argparse.Namespace) -> str:
    """NOW or SIMULATED, by default after the destination."""
    return options.event_time or (NOW if options.topic else SIMULATED)


def make_source(options: argparse.Namespace) -> MessageSource:
    """The message source that the options describe.

    Raises:
      ValueError: an option is out of its range, or a kind is unknown.
    """
    start = None
    if event_time_mode(options) == SIMULATED:
        start = _time(options.start_time) if options.start_time else default_start_time()
    generator = TransactionGenerator(
        seed=options.seed,
        fraud_share=options.fraud_share,
        fraud_kinds=_names(options.fraud_kinds, tuple(frauds.KINDS)),
        accounts=options.accounts,
        merchants=options.merchants,
        cycle=options.cycle or options.count or CYCLE_TRANSACTIONS,
    )
    return MessageSource(
        generator,
        malformed_share=options.malformed_share,
        malformed_kinds=_names(options.malformed_kinds, tuple(malformed.KINDS)),
        start_time=start,
    )


def make_pattern(options: argparse.Namespace) -> Pattern:
    """The load pattern that the options describe.

    Raises:
      ValueError: a parameter is missing or out of its range.
    """
    period = PERIOD_SECONDS if options.period is None else options.period
    return patterns.make(options.pattern, options.rate or 0.0, options.peak_rate, period, options.width)


def make_sink(options: argparse.Namespace) -> Sink:
    """The destination that the options name, opened.

    Raises:
      ValueError: the topic's name has a wrong form.
      PublishError: there are no credentials.
      OSError: the file cannot be written.
    """
    if options.topic:
        return PubSubTopic(options.topic, timeout=options.timeout or TIMEOUT_SECONDS)
    return JsonLinesFile(options.jsonl) if options.jsonl else ParquetFile(options.parquet)


def _names(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _time(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"--start-time: {text!r} is not a time like 2026-01-01T00:00:00Z, with its offset")
    return moment


def _kinds(word: str, kinds: dict[str, frauds.FraudKind] | dict[str, malformed.MalformedKind]) -> str:
    lines = [f"  {kind.name:20} {kind.description}" for kind in kinds.values()]
    return "\n".join((f"{word} kinds:", *lines))


def _pattern_help() -> str:
    return """\
load patterns:
  constant             --rate throughout
  ramp                 from --rate to --peak-rate in a straight line over --period, --peak-rate from then on
  spike                --rate, but --peak-rate for --width seconds in the middle of each --period
  burst                --peak-rate for the first --width seconds of each --period, then silence"""
