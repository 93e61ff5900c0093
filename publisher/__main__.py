"""`python -m publisher`: send synthetic transactions to Pub/Sub, or write them to a file. See --help."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from tqdm import tqdm

from common.streams import ends_quietly
from publisher import options as command
from publisher.publish import Progress, Summary, publish
from publisher.sink import PublishError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _StopOnSignal:
    """Sets `event` on the first Ctrl-C or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number: int | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.event.set()
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)


@ends_quietly
def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns the exit status that --help describes."""
    parser = command.make_parser()
    options = parser.parse_args(argv)
    stop = _StopOnSignal()
    try:
        command.check(options)
        source = command.make_source(options)
        pattern = command.make_pattern(options)
        sink = command.make_sink(options)
    except ValueError as error:
        parser.error(str(error))
    except (PublishError, OSError) as error:
        print(f"publisher: {error}", file=sys.stderr)
        return 1
    try:
        with (
            stop.installed(),
            tqdm(total=options.count, unit="msg", disable=options.quiet or None, file=sys.stderr) as bar,
            sink,
        ):
            summary = publish(
                source,
                sink,
                pattern=pattern,
                count=options.count,
                duration=options.duration,
                tee=options.tee,
                labels=options.labels,
                progress=lambda progress: _show(bar, progress),
                stop=stop.event,
            )
    except OSError as error:
        print(f"publisher: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary.to_dict()) if options.format == "json" else format_summary(summary))
    for reason, number in summary.errors.items():
        print(f"publisher: {number} messages not published: {reason}", file=sys.stderr)
    if summary.failed:
        return 1
    return 128 + stop.number if stop.number is not None else 0


def format_summary(summary: Summary) -> str:
    """The summary for people."""
    ends = {
        "count": "all messages of --count",
        "duration": "the time of --duration",
        "signal": "stopped",
        "failures": "given up after failures",
    }
    rows: list[tuple[str, Any]] = [
        ("destination", summary.destination),
        ("ended by", ends[summary.stopped_by]),
        ("sent", f"{summary.sent:,}"),
        ("confirmed", f"{summary.confirmed:,} in {summary.seconds:.1f} s, {summary.rate:,.0f} a second"),
        ("bytes", f"{summary.bytes:,}"),
        ("normal", f"{summary.normal:,}"),
        ("planted frauds", _counts(summary.planted)),
        ("malformed", _counts(summary.malformed)),
    ]
    if summary.left_out:
        rows.append(("left out", f"{summary.left_out:,} malformed messages, which Parquet cannot hold"))
    rows.append(("failed", f"{summary.failed:,}"))
    return "\n".join(f"{name:15} {value}" for name, value in rows)


def _counts(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    each = ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items()))
    return f"{total:,} ({each})" if each else "0"


def _show(bar: tqdm, progress: Progress) -> None:
    bar.update(progress.confirmed + progress.failed + progress.left_out - bar.n)
    if progress.failed:
        bar.set_postfix_str(f"{progress.failed} failed", refresh=False)


if __name__ == "__main__":
    sys.exit(main())
