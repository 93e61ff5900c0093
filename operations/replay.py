"""Sends dead letters through again, once their cause is mended.

Reads the dead letters of a dataset that no earlier run has sent, and publishes their payloads with the count
of attempts raised by one. What cannot be sent is counted with its reason. See docs/replay.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from google.api_core.exceptions import GoogleAPIError, NotFound
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from requests.exceptions import RequestException
from tqdm import tqdm

from common import names
from common.command import command
from model.features import N_FEATURES
from model.synthetic.generator import Transactions
from operations import query
from operations.letters import Letter, hindrance, letters, message, statement
from pipelines import options
from publisher.messages import Messages
from publisher.pubsub import PubSubTopic
from publisher.sink import PublishError, Sink
from transforms import clients, tables

EXAMPLE = """examples:
  python -m operations.replay --dataset my-project.anomaly --topic projects/my-project/topics/transactions \\
      --dry-run
  python -m operations.replay --dataset my-project.anomaly --topic projects/my-project/topics/transactions \\
      --since 24h --stage parse --reason "over the limit"

exit status: 0 done, letters that cannot be sent included; 1 something failed; 2 wrong options; 130 ended by
Ctrl-C. Run one replay of a dataset at a time: two would send the same letters."""

PORTION_LETTERS: Final = 5_000
PORTION_BYTES: Final = 32 * 1024**2
"""What is published before it is noted as sent, and sent again if the process dies in between."""
DRY_ROWS: Final = 50

_NO_TRANSACTIONS: Final = Transactions(
    np.empty(0, np.int64), [], [], [], np.empty(0), np.empty((0, N_FEATURES)), np.empty(0, np.int8), ()
)


@dataclass
class Summary:
    """The outcome of a run: read = sent + left.

    Attributes:
      topic: where the letters went.
      read: letters that were looked at.
      sent: letters that the topic confirmed and that are noted.
      left: letters that were not sent, by reason.
      failed: how many of these a later run can send, as the topic refused them.
    """

    topic: str
    read: int = 0
    sent: int = 0
    left: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "topic": self.topic,
            "read": self.read,
            "sent": self.sent,
            "left": self.left.total(),
            "failed": self.failed,
            "left_by_reason": dict(self.left),
        }


class NoteError(RuntimeError):
    """Letters were sent and could not be noted."""


def read(client: bigquery.Client, args: argparse.Namespace, noted: bool) -> bigquery.table.RowIterator:
    """The rows of `statement`, page by page: payloads can be large."""
    values = [("since", "TIMESTAMP", args.since), ("stage", "STRING", args.stage)]
    values.append(("reason", "STRING", args.reason))
    parameters = [bigquery.ScalarQueryParameter(*each) for each in values if each[2] is not None]
    text = statement(args.dataset, args.stage is not None, args.reason, noted)
    return query.start(client, text, bigquery.QueryJobConfig(query_parameters=parameters)).result(
        retry=query.RETRY
    )


def replay(
    found: Iterable[Letter],
    sink: Sink,
    note: Callable[[Sequence[Letter]], None],
    max_attempts: int,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda number: None,
) -> Summary:
    """Sends letters in portions, and notes each portion once it is confirmed.

    Args:
      found: the letters.
      sink: takes them.
      note: called with letters that were confirmed; they are not sent by a later run.
      max_attempts: letters that were replayed as often stay.
      limit: the most letters to send.
      progress: called with the number of letters dealt with since the last call.
    """
    summary = Summary(sink.destination)
    before = 0
    for portion in _portions(_sendable(found, summary, max_attempts, limit)):
        pairs = [message(letter) for letter in portion]
        payloads, attributes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        receipts = sink.send(Messages(_NO_TRANSACTIONS, [], payloads, attributes, [], [], []))
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
    found: Iterable[Letter], summary: Summary, max_attempts: int, limit: int | None
) -> Iterator[Letter]:
    number = 0
    for letter in found:
        if limit is not None and number >= limit:
            return
        summary.read += 1
        why = hindrance(letter, max_attempts)
        if why is None:
            number += 1
            yield letter
        else:
            summary.left[why] += 1


def _portions(found: Iterable[Letter]) -> Iterator[list[Letter]]:
    portion: list[Letter] = []
    size = 0
    for letter in found:
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
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        raise NoteError(
            f"{len(sent)} letters were sent to {topic}, but could not be noted in {dataset}.{spec.name}, so "
            f"that the next run sends them again: {error}"
        ) from error


def planned(found: Iterable[Letter], topic: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a run would do, without doing it: the numbers, and the letters by stage, attempt and reason."""
    summary = Summary(topic)
    groups: Counter[tuple[str, int, str]] = Counter()
    for letter in _sendable(found, summary, args.max_attempts, args.limit):
        groups[letter.stage, letter.attempt, letter.reason] += 1
    rows = [
        {"stage": stage, "attempt": attempt, "reason": reason, "letters": number}
        for (stage, attempt, reason), number in groups.most_common()
    ]
    told = {key: value for key, value in summary.to_dict().items() if key not in ("sent", "failed")}
    return {"dry_run": True, **told, "would_send": groups.total(), "letters": rows}


def summary_text(told: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [f"read   {told['read']:,}"]
    if "would_send" in told:
        lines.append(f"would send {told['would_send']:,} to {told['topic']}")
        if told["letters"]:
            lines.append(query.table_text(told["letters"][:DRY_ROWS]))
        if len(told["letters"]) > DRY_ROWS:
            lines.append(f"and {len(told['letters']) - DRY_ROWS:,} reasons more; --format json lists them")
    else:
        lines.append(f"sent   {told['sent']:,} to {told['topic']}")
    lines.append(f"left   {told['left']:,}")
    lines += [f"  {number:,}  {why}" for why, number in told["left_by_reason"].items()]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    found = argparse.ArgumentParser(
        prog="python -m operations.replay",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument(
        "--dataset",
        type=names.DATASET,
        required=True,
        metavar="PROJECT.DATASET",
        help="its dead letters are read, and noted as sent. Example: my-project.anomaly",
    )
    found.add_argument(
        "--topic",
        type=names.TOPIC,
        required=True,
        metavar="TOPIC",
        help="where they go. Example: projects/my-project/topics/transactions",
    )
    found.add_argument(
        "--since",
        type=query.since,
        default="7d",
        metavar="WHEN",
        help="letters from this time on: 90m, 24h, 7d, or 2026-03-01T12:00:00Z (default: %(default)s)",
    )
    found.add_argument("--stage", choices=("parse", "score", "sink"), help="letters of this stage alone")
    found.add_argument(
        "--reason",
        metavar="TEXT",
        help="letters whose reason has this in it; with %% it is an SQL LIKE pattern",
    )
    found.add_argument("--limit", type=options.at_least(1), metavar="N", help="the most letters to send")
    found.add_argument(
        "--max_attempts",
        type=options.at_least(1),
        default=3,
        metavar="N",
        help="letters that were replayed as often stay (default: %(default)s)",
    )
    found.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    found.add_argument("--format", choices=("text", "json"), default="text", help="of the summary, on stdout")
    found.add_argument("--quiet", action="store_true", help="no progress bar")
    clients.add_arguments(found)
    return found


def run(client: bigquery.Client, args: argparse.Namespace) -> dict[str, Any]:
    """Does what the options say; gives the summary as plain values."""
    if args.dry_run:
        return planned(letters(read(client, args, _has_notes(client, args.dataset))), args.topic, args)
    client.get_dataset(args.dataset, retry=query.RETRY)  # or create_tables would make one
    tables.create_tables(client, args.dataset, [tables.replayed_records_table()])
    rows = read(client, args, noted=True)
    with (
        PubSubTopic(args.topic) as sink,
        tqdm(total=rows.total_rows, unit="msg", disable=args.quiet or None, file=sys.stderr) as bar,
    ):
        summary = replay(
            letters(rows),
            sink,
            lambda sent: note_sent(client, args.dataset, args.topic, sent),
            args.max_attempts,
            args.limit,
            bar.update,
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
    """Entry point; returns the exit code."""
    found = parser()
    args = found.parse_args(argv)
    try:
        endpoints = clients.BigQueryEndpoints(args.bigquery_endpoint, args.bigquery_storage_endpoint)
        told = run(endpoints.client(args.dataset.rpartition(".")[0]), args)
    except (PublishError, NoteError, tables.TableError, tables.NoAnswerError) as error:
        found.exit(1, f"{found.prog}: {error}\n")
    except (GoogleAPIError, GoogleAuthError, RequestException, ValueError) as error:
        found.exit(1, f"{found.prog}: {query.explain(error, args.dataset, args.bigquery_endpoint)}")
    except KeyboardInterrupt:
        found.exit(130, f"{found.prog}: ended; a portion that was under way is sent again by the next run\n")
    print(json.dumps(told) if args.format == "json" else summary_text(told))
    return 1 if told.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
