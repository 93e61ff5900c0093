"""The last step of `benchmarks.local_runner`: in a module of its own, so that it is not pickled by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apache_beam as beam

SEEN: list[int] = []


class Count(beam.DoFn):
    """Notes how many messages it has seen."""

    def process(self, element: Any) -> None:
        """Count a message, or a batch of them."""
        SEEN.append(len(element) if isinstance(element, Sequence) else 1)
