"""The cost of messages that need more than the usual look, as multiples of the usual one.

Example:
  python -m benchmarks.messages
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from common.command import command
from features.roles import Roles
from features.ulb import FEATURES
from transforms.decode import Transaction, decoder

USUAL = {
    "transaction_id": "5b1f",
    "event_time": "2026-01-01T10:00:00Z",
    "features": [i + 0.25 for i in range(len(FEATURES))],
}
CASES = {
    "usual": USUAL,
    "an integer as id": USUAL | {"transaction_id": 7},
    "a time that is not RFC 3339": USUAL | {"event_time": 1_767_261_600},
    "numbers as text": USUAL | {"features": [f"{i}.25" for i in range(len(FEATURES))]},
}


def seconds(decode: Callable[[bytes], Transaction], payload: bytes, calls: int) -> float:
    """The CPU seconds of so many calls."""
    start = time.process_time()
    for _ in range(calls):
        decode(payload)
    return time.process_time() - start


def run(rounds: int, calls: int) -> dict[str, float]:
    """The median of each case's time over that of the usual message, in the same round."""
    decode = decoder(FEATURES, Roles(), 65_536)
    payloads = {name: json.dumps(message).encode() for name, message in CASES.items()}
    times = [
        {name: seconds(decode, payload, calls) for name, payload in payloads.items()} for _ in range(rounds)
    ]
    return {name: statistics.median(round_[name] / round_["usual"] for round_ in times) for name in CASES}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m benchmarks.messages`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.messages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="medians are shown (default: 25)")
    parser.add_argument("--calls", type=int, default=2000, help="messages of a round (default: 2,000)")
    args = parser.parse_args(argv)
    print("| message | times the usual one |\n|---|---:|")
    for name, ratio in run(args.rounds, args.calls).items():
        print(f"| {name} | {ratio:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
