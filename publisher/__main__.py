"""`anomaly publish`: sends synthetic transactions to Pub/Sub, or writes them to a file. See --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common import output
from common.command import CommandError, command
from common.options import OptionError
from common.signals import StopOnSignal
from publisher.messages import FileSource
from publisher.options import parse
from publisher.publish import Progress, Summary, publish
from publisher.sink import PublishError


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status that --help describes."""
    options = parse(argv)
    stop = StopOnSignal()
    try:
        pattern = options.load.make_pattern()
        source = options.content.source(
            bool(options.destination.topic), options.load.count, options.load.expected
        )
        sink = options.destination.open(options.content.form)
    except ValueError as error:
        raise OptionError(str(error)) from error
    except (PublishError, OSError) as error:
        raise CommandError(str(error)) from error
    done = 0

    def show(progress: Progress) -> None:
        nonlocal done
        now = progress.confirmed + progress.failed + progress.left_out
        advance(now - done)
        done = now

    try:
        with (
            stop.installed(),
            output.progress(options.load.count, "messages", options.quiet) as advance,
            sink,
        ):
            summary = publish(
                source,
                sink,
                pattern=pattern,
                count=options.load.count,
                duration=options.load.duration,
                tee=options.destination.tee,
                labels=options.destination.labels,
                progress=show,
                stop=stop.event,
            )
    except OSError as error:
        raise CommandError(str(error)) from error
    is_file = isinstance(source, FileSource)
    record = describe(summary, is_file) if options.format == "table" else summary.to_dict()
    output.print_record(record, options.format)
    if isinstance(source, FileSource) and source.blank_lines:
        print(f"blank lines, which are no messages: {source.blank_lines:,}", file=sys.stderr)
    for reason, number in summary.errors.items():
        print(f"error: {number} messages not published: {reason}", file=sys.stderr)
    return 1 if summary.failed else stop.status


def describe(summary: Summary, is_file: bool = False) -> dict[str, str]:
    """The summary for people, by name of the line; without the kinds for a file, which does not tell them."""
    ends = {
        "count": "all messages of --count",
        "duration": "the time of --duration",
        "source": "the last line of --input" if is_file else "the present, which simulated time has reached",
        "signal": "stopped",
        "failures": "given up after failures",
    }
    rows = {
        "destination": summary.destination,
        "ended by": ends[summary.stopped_by],
        "sent": f"{summary.sent:,}",
        "confirmed": f"{summary.confirmed:,} in {summary.seconds:.1f} s, {summary.rate:,.0f} a second",
        "bytes": f"{summary.bytes:,}",
    }
    if not is_file:
        rows["normal"] = f"{summary.normal:,}"
        rows["planted frauds"] = _counts(summary.planted)
        rows["malformed"] = _counts(summary.malformed)
    if summary.first_event_time:
        rows["event times"] = f"{summary.first_event_time} to {summary.last_event_time}"
    if summary.left_out:
        rows["left out"] = f"{summary.left_out:,} malformed messages, which Parquet cannot hold"
    return rows | {"failed": f"{summary.failed:,}"}


def _counts(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    each = ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items()))
    return f"{total:,} ({each})" if each else "0"


if __name__ == "__main__":
    sys.exit(main())
