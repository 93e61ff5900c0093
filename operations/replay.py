"""Sends dead letters through again, once their cause is fixed.

Reads the dead letters of a dataset that no earlier run has sent, and publishes their payloads with the count
of attempts raised by one. What cannot be sent is counted with its reason. See docs/replay.md.
"""

from __future__ import annotations

import datetime as dt
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pyarrow as pa
from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from common import clients, google
from common.command import CommandError, Parser, command
from common.names import DATASET, TOPIC
from common.options import add_options, option, read_options
from common.output import add_format, print_record, print_rows, progress, safe_text
from common.signals import StopOnSignal
from common.values import at_least, moment
from operations import query
from operations.dead_letters import Letter, message, reason_to_keep, statement, to_letters
from publisher.messages import Outgoing
from publisher.pubsub import PubSubTopic
from publisher.sink import PublishError, Sink
from transforms import tables
from transforms.table_columns import TableError

EXAMPLES: Final = """\
  anomaly replay --dataset my-project.anomaly --topic projects/my-project/topics/transactions --dry_run
  anomaly replay --dataset my-project.anomaly --topic projects/my-project/topics/transactions \\
      --since 24h --stage parse --reason "over the limit"

exit status: 0 done, letters that cannot be sent included; 1 something failed; 2 wrong options; 130 ended by
Ctrl-C, 143 by SIGTERM. Either waits for the letters under way to be noted; a second one does not. Run one
replay of a dataset at a time: two would send the same letters."""

PORTION_LETTERS: Final = 5_000
PORTION_BYTES: Final = 32 * 1024**2
"""Letters published before they are noted as sent; sent again if the process dies in between."""
DRY_ROWS: Final = 50


@dataclass
class Summary:
    """The outcome of a run: read = sent + left.

    Attributes:
      topic: where the letters went.
      read: letters that were looked at.
      sent: letters that the topic confirmed and that are noted.
      left: letters that were not sent, by reason.
      failed: how many of these a later run can send, as the topic refused them.
      stopped: whether a signal ended the run before the last letter.
    """

    topic: str
    read: int = 0
    sent: int = 0
    left: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "topic": self.topic,
            "read": self.read,
            "sent": self.sent,
            "left": self.left.total(),
            "failed": self.failed,
            "left_by_reason": dict(self.left),
            "stopped": self.stopped,
        }


class NoteError(RuntimeError):
    """Letters were sent and could not be noted."""


@dataclass(frozen=True)
class LetterOptions:
    """The dead letters to read, and the number to send.

    Attributes:
      dataset: "PROJECT.DATASET".
    """

    dataset: str = option(
        type=DATASET,
        metavar="PROJECT.DATASET",
        help="its dead letters are read, and noted as sent. Example: my-project.anomaly",
    )
    since: dt.datetime | None = option(
        None,
        type=moment,
        metavar="WHEN",
        help="letters from this time on: 90m, 24h, 7d, or 2026-03-01T12:00:00Z (default: 7d)",
    )
    stage: Literal["parse", "score", "sink"] | None = option(None, help="letters of this stage alone")
    reason: str | None = option(
        None, metavar="TEXT", help="letters whose reason has this in it; with %% it is an SQL LIKE pattern"
    )
    limit: int | None = option(None, type=at_least(1), metavar="N", help="most letters to send")
    max_attempts: int = option(
        3,
        type=at_least(1),
        metavar="N",
        help="letters that were replayed as often stay (default: %(default)s)",
    )


def read(client: bigquery.Client, options: LetterOptions, noted: bool) -> bigquery.table.RowIterator:
    """Reads the rows of `statement`, page by page: payloads can be large."""
    since = options.since or moment("7d")
    text, parameters = statement(options.dataset, since, options.stage, options.reason, noted)
    config = bigquery.QueryJobConfig(query_parameters=parameters)
    return query.start(client, text, config).result(retry=query.RETRY)


def replay(
    letters: Iterable[Letter],
    sink: Sink,
    note: Callable[[Sequence[Letter]], None],
    max_attempts: int,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda number: None,
    stop: threading.Event | None = None,
) -> Summary:
    """Sends letters in portions, and notes each portion once it is confirmed.

    Args:
      letters: to be sent.
      sink: takes them.
      note: called with letters that were confirmed; they are not sent by a later run.
      max_attempts: letters that were replayed as often stay.
      limit: the most letters to send.
      progress: called with the number of letters dealt with since the last call.
      stop: ends the run when it is set, once the letters read so far are sent and noted.
    """
    summary = Summary(sink.destination)
    before = 0
    for portion in _portions(_sendable(letters, summary, max_attempts, limit, stop)):
        pairs = [message(letter) for letter in portion]
        payloads, attributes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        keys = pa.record_batch({"letter": [letter.key for letter in portion]})
        receipts = sink.send(Outgoing(payloads, attributes, keys))
        confirmed: list[Letter] = []
        start = 0
        for receipt in [*receipts, *sink.flush()]:  # in the order of sending
            part = portion[start : start + len(receipt.messages)]
            start += len(part)
            if receipt.error is None:
                confirmed += part
            else:
                summary.left[f"not published: {receipt.error}"] += len(part)
                summary.failed += len(part)
        if confirmed:
            note(confirmed)
            summary.sent += len(confirmed)
        progress(summary.read - before)
        before = summary.read
        if summary.failed:  # each request has used up its retries
            break
    progress(summary.read - before)
    return summary


def _sendable(
    letters: Iterable[Letter],
    summary: Summary,
    max_attempts: int,
    limit: int | None,
    stop: threading.Event | None = None,
) -> Iterator[Letter]:
    number = 0
    for letter in letters:
        if limit is not None and number >= limit:
            return
        if stop is not None and stop.is_set():
            summary.stopped = True
            return
        summary.read += 1
        reason = reason_to_keep(letter, max_attempts)
        if reason is None:
            number += 1
            yield letter
        else:
            summary.left[reason] += 1


def _portions(letters: Iterable[Letter]) -> Iterator[list[Letter]]:
    portion: list[Letter] = []
    size = 0
    for letter in letters:
        portion.append(letter)
        size += len(letter.payload or b"")
        if len(portion) == PORTION_LETTERS or size >= PORTION_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def note_sent(client: bigquery.Client, dataset: str, topic: str, sent: Sequence[Letter]) -> None:
    """Appends letters to the table of what was sent, by a load job: all of them or none, visible at once.

    Raises:
      NoteError: they are sent, and not noted.
    """
    spec = tables.replayed_records_table()
    now = dt.datetime.now(dt.UTC).isoformat()
    rows = [
        {"letter": letter.key, "attempt": letter.attempt + 1, "topic": topic, "replayed_at": now}
        for letter in sent
    ]
    config = bigquery.LoadJobConfig(schema=spec.table(dataset).schema, write_disposition="WRITE_APPEND")
    try:
        client.load_table_from_json(rows, f"{dataset}.{spec.name}", job_config=config).result()
    except google.ERRORS as error:
        raise NoteError(
            f"{len(sent)} letters were sent to {topic}, but could not be noted in {dataset}.{spec.name}, so "
            f"that the next run sends them again: {error}"
        ) from error


def plan(letters: Iterable[Letter], topic: str, options: LetterOptions) -> dict[str, Any]:
    """Says what a run would do, without doing it: numbers, and the letters by stage, attempt and reason."""
    summary = Summary(topic)
    groups: Counter[tuple[str, int, str]] = Counter()
    for letter in _sendable(letters, summary, options.max_attempts, options.limit):
        groups[letter.stage, letter.attempt, letter.reason] += 1
    rows = [
        {"stage": stage, "attempt": attempt, "reason": reason, "letters": number}
        for (stage, attempt, reason), number in groups.most_common()
    ]
    of_sending = ("sent", "failed", "stopped")
    known = {key: value for key, value in summary.to_dict().items() if key not in of_sending}
    return {"dry_run": True, **known, "would_send": groups.total(), "letters": rows}


def print_summary(summary: dict[str, Any]) -> None:
    """Prints the summary for people."""
    lines = {"read": f"{summary['read']:,}"}
    if "would_send" in summary:
        lines["would send"] = f"{summary['would_send']:,} to {summary['topic']}"
    else:
        lines["sent"] = f"{summary['sent']:,} to {summary['topic']}"
    print_record(lines | {"left": f"{summary['left']:,}"})
    for reason, number in summary["left_by_reason"].items():
        print(f"  {number:,}  {safe_text(reason)}")
    if summary.get("stopped"):
        print("Ended before the last letter; the next run sends the rest.")
    rows = summary.get("letters", [])
    if rows:
        print_rows(rows[:DRY_ROWS])
    if len(rows) > DRY_ROWS:
        print(f"and {len(rows) - DRY_ROWS:,} reasons more; --format json lists them")


def parser() -> Parser:
    """The parser of this command."""
    parser = Parser("anomaly replay", __doc__, EXAMPLES)
    add_options(parser, LetterOptions, "letters")
    parser.add_argument(
        "--topic",
        type=TOPIC,
        required=True,
        metavar="TOPIC",
        help="where they go. Example: projects/my-project/topics/transactions",
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be sent, and send nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_format(parser)
    add_options(parser, clients.EndpointOptions, "endpoints")
    return parser


def run(
    client: bigquery.Client, options: LetterOptions, topic: str, is_quiet: bool, stop: StopOnSignal
) -> dict[str, Any]:
    """Sends the letters; gives the summary as plain values."""
    client.get_dataset(options.dataset, retry=query.RETRY)  # create_tables would make one
    tables.create_tables(client, options.dataset, [tables.replayed_records_table()])
    rows = read(client, options, noted=True)
    with (
        stop.installed(),
        PubSubTopic(topic) as sink,
        progress(rows.total_rows, "letters", is_quiet) as advance,
    ):
        summary = replay(
            to_letters(rows),
            sink,
            lambda sent: note_sent(client, options.dataset, topic, sent),
            options.max_attempts,
            options.limit,
            advance,
            stop.event,
        )
    return summary.to_dict()


def _has_notes(client: bigquery.Client, dataset: str) -> bool:
    try:
        client.get_table(f"{dataset}.{tables.REPLAYED_TABLE}", retry=query.RETRY)
    except NotFound:
        return False
    return True


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    namespace = parser().parse_args(argv)
    options, topic, stop = read_options(LetterOptions, namespace), namespace.topic, StopOnSignal()
    try:
        client = clients.BigQueryEndpoints(namespace.bigquery_endpoint).client(
            options.dataset.rpartition(".")[0]
        )
        if namespace.dry_run:
            noted = _has_notes(client, options.dataset)
            summary = plan(to_letters(read(client, options, noted)), topic, options)
        else:
            summary = run(client, options, topic, namespace.quiet, stop)
    except (PublishError, NoteError, TableError, tables.NoAnswerError) as error:
        raise CommandError(str(error)) from error
    except (*google.ERRORS, ValueError) as error:
        # A dry run reads alone.
        role = f"roles/bigquery.{'dataViewer' if namespace.dry_run else 'dataEditor'}"
        text = query.explain(error, options.dataset, namespace.bigquery_endpoint, role)
        raise CommandError(text) from error
    except KeyboardInterrupt:
        print("error: ended before a letter was sent", file=sys.stderr)
        return 130
    if namespace.format == "table":
        print_summary(summary)
    else:
        print_record(summary, namespace.format)
    return 1 if summary.get("failed") else stop.status
