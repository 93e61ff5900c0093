"""Runs the whole product on this machine: train, publish, stream, batch, alert, store, query.

Twice: with the 30 numbers of the ULB table, and with raw card payments by a feature spec. Then another model
takes over while a stream runs, and a shifted feed is noticed. Everything but the endpoints is what runs on
Google Cloud. Python is all it needs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from common.command import CommandError, Parser, command
from common.options import OptionError, add_options, option, read_options
from common.output import add_format, print_record
from common.values import at_least
from features import reading
from local.demo_commands import DemoError, ran, say
from local.demo_feed import Feed, FeedRun
from local.demo_operate import operate
from local.demo_report import DemoReport, print_report
from local.process import LocalStackError
from local.pubsub import PubSubKind
from local.stack import LocalStack
from model import artifact
from publisher.messages import default_start_time

EXAMPLES: Final = """\
  anomaly demo
  anomaly demo --serve
  anomaly demo --count 50000 --rate 2000 --output out/big"""

QUERIES: Final = {"top_anomalies": 8, "latency": None, "dead_letters": None}
"""The named queries of the report, and the most rows of each."""
FRAUD_SHARE: Final = 0.02
CARD_FRAUD_SHARE: Final = 0.03
"""So many that each of the six kinds is among the payments of some two days."""
RATE: Final = 800
SERVED_RATE: Final = 100
"""A rate at which a page is worth watching."""
CARD_SPEC: Final = Path(__file__).resolve().parents[1] / "examples" / "cards" / "features.yaml"
NEXT_TRAINING: Final = ("--rows", "8000", "--epochs", "20", "--seed", "7")
"""Of the model that takes over: a short training, which is enough to be another model."""
PAST_PAYMENTS: Final = 40_000
"""Of the same accounts, before those that are published: to train on, and to build the histories of."""
PAYMENTS_A_DAY: Final = 3_000
"""Fewer than the publisher's accounts make: simulated time must reach the last payment before the present."""


@dataclass(frozen=True)
class DemoOptions:
    """The options of the demo.

    Raises:
      OptionError: a directory is a file, or the feature spec is none.
    """

    count: int = option(
        12_000,
        type=at_least(2),
        metavar="N",
        help="messages of the ULB table; of card payments half as many (default: %(default)s)",
    )
    rate: int | None = option(
        None,
        type=at_least(1),
        metavar="N",
        help=f"messages a second (default: {RATE}, with --serve {SERVED_RATE})",
    )
    seed: int = option(11, type=at_least(0), metavar="N", help="of the transactions (default: %(default)s)")
    model: Path = option(
        Path("out/model"),
        type=Path,
        metavar="DIR",
        help="artifact of the ULB table, trained where there is none (default: %(default)s)",
    )
    card_model: Path = option(
        Path("out/demo-cards"),
        type=Path,
        metavar="DIR",
        help="artifact of card payments, trained where there is none (default: %(default)s)",
    )
    card_features: Path = option(
        CARD_SPEC,
        type=Path,
        metavar="FILE",
        help="feature spec of card payments (default: examples/cards/features.yaml)",
    )
    next_model: Path = option(
        Path("out/demo-next"),
        type=Path,
        metavar="DIR",
        help="artifact of the ULB table that takes over from --model, trained where there is none "
        "(default: %(default)s)",
    )
    output: Path = option(Path("out/demo"), type=Path, metavar="DIR", help="default: %(default)s")
    serve: bool = option(
        False, help="serve the pages while the messages stream, slowly, and from then on until Ctrl-C"
    )
    pubsub: PubSubKind | None = option(
        None, help="server of Pub/Sub (default: gcloud's where gcloud and Java are there)"
    )

    def __post_init__(self) -> None:
        places = {"--model": self.model, "--card_model": self.card_model, "--next_model": self.next_model}
        places["--output"] = self.output
        for flag, path in places.items():
            nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
            if not nearest.is_dir():
                raise OptionError(f"{flag}: expected a directory, got {path}, where {nearest} is a file")
        if not self.card_features.is_file():
            raise OptionError(
                f"--card_features: expected a feature spec, got {self.card_features}, which is no file; "
                "the project's source has one at examples/cards/features.yaml"
            )

    @property
    def pace(self) -> int:
        """Messages a second."""
        return self.rate or (SERVED_RATE if self.serve else RATE)


def ensure_model(path: Path, *flags: str) -> artifact.Manifest:
    """Reads the model at a path; trains it on synthetic data first where there is none, by these flags."""
    if not (path / artifact.MANIFEST_FILE).is_file():
        say("Train a model on synthetic transactions")
        print(ran("train", "--output", str(path), *flags), file=sys.stderr)
    return _verified(path)


def publish_past(path: Path, seed: int, start: dt.datetime) -> None:
    """Writes the past payments of the accounts as a labelled CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = ("--count", str(PAST_PAYMENTS), "--seed", str(seed), "--fraud_share", str(CARD_FRAUD_SHARE))
    times = ("--start_time", start.isoformat(), "--quiet")
    ran("publish", "--spec", "card", "--csv", str(path), "--labelled", *flags, *times)


def ensure_card_model(path: Path, features: Path, payments: Path) -> artifact.Manifest:
    """Reads the model of card payments; trains it on past payments first where there is none.

    Args:
      path: of the artifact.
      features: the feature spec.
      payments: CSV file that `publish_past` has written.

    Raises:
      DemoError: the model is of other features.
    """
    if not (path / artifact.MANIFEST_FILE).is_file():
        say("Train a model on card payments")
        data = ("--data", str(payments), "--features", str(features))
        print(ran("train", *data, "--output", str(path)), file=sys.stderr)
    manifest = _verified(path)
    if manifest.spec != reading.read(features):
        raise DemoError(
            f"--card_model: expected a model of the features in {features}, got {path}, which has others: "
            "pass another directory, or its feature spec as --card_features"
        )
    return manifest


def _verified(path: Path) -> artifact.Manifest:
    manifest = artifact.verify(path)
    steps = ", ".join(f"{name} from {value:.2f}" for name, value in manifest.thresholds.items())
    say(f"Model {manifest.model_version} in {path}: {steps}")
    return manifest


def feeds(options: DemoOptions) -> tuple[Feed, Feed]:
    """Makes both kinds of transactions, with their models: the ULB table, and card payments."""
    cards, count = options.output / "cards", options.count // 2
    ulb_model = ensure_model(options.model)
    start = default_start_time() - dt.timedelta(days=(PAST_PAYMENTS + count) // PAYMENTS_A_DAY)
    say(f"{PAST_PAYMENTS:,} past payments of the accounts")
    payments = cards / "payments.csv"
    publish_past(payments, options.seed, start)
    card_model = ensure_card_model(options.card_model, options.card_features, payments)
    ulb = Feed(
        kind="ulb",
        model=options.model,
        manifest=ulb_model,
        output=options.output,
        topic="transactions",
        dataset="anomaly",
        count=options.count,
        rate=options.pace,
        seed=options.seed,
        fraud_share=FRAUD_SHARE,
    )
    return ulb, Feed(
        kind="card",
        model=options.card_model,
        manifest=card_model,
        output=cards,
        topic="payments",
        dataset="cards",
        count=count,
        rate=options.pace,
        seed=options.seed,
        fraud_share=CARD_FRAUD_SHARE,
        start=start,
        skip=PAST_PAYMENTS,
        past=payments if card_model.spec.history else None,
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser("anomaly demo", __doc__, EXAMPLES)
    add_options(parser, DemoOptions)
    add_format(parser)
    namespace = parser.parse_args(argv)
    options = read_options(DemoOptions, namespace)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _end)
    # Warnings only: Beam's own information would drown the demo's.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        ulb, cards = feeds(options)
        ensure_model(options.next_model, *NEXT_TRAINING)
        ulb.clear()
        cards.clear()
        say("Start Pub/Sub and BigQuery")
        with (
            LocalStack(pubsub=options.pubsub or "auto") as stack,
            stack.endpoints.activate() as endpoints,
            contextlib.ExitStack() as pages,
        ):
            assert endpoints.pubsub_kind
            print(f"Pub/Sub: {endpoints.pubsub_kind}; BigQuery: bqemulator", file=sys.stderr)
            numbers, payments = (
                FeedRun(feed, endpoints, options.serve, pages).run(QUERIES) for feed in (ulb, cards)
            )
            live = options.output / "live"
            operated = operate(endpoints, options.model, options.next_model, live, options.seed)
            took = time.monotonic() - started
            summary = DemoReport(endpoints.pubsub_kind, numbers, payments, operated, took)
            if namespace.format == "table":
                print_report(summary)
            else:
                print_record(asdict(summary), namespace.format)
            if options.serve:
                say(f"Pages: {numbers.url} and {payments.url} until Ctrl-C")
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()
    except (DemoError, LocalStackError, artifact.ArtifactError, TimeoutError) as error:
        raise CommandError(str(error)) from error
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    """Ends as after Ctrl-C: what was started is stopped on the way out."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
