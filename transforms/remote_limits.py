"""Limits of the requests to a remote scorer."""

from __future__ import annotations

from dataclasses import dataclass

from common.retry import Patience
from transforms.remote_protocol import MIN_REQUEST_BYTES
from transforms.remote_retry import MAX_RETRY_AFTER, PATIENCE


@dataclass(frozen=True)
class Limits:
    """Limits of requests: how they are cut and sent.

    Attributes:
      rows: instances a request at most; on shared endpoints of Vertex AI fewer, so that the answer also
        stays under 1.5 MB, by estimate: 573 with detail "full".
      bytes: bytes of a request's body at most; Vertex AI takes 1.5 MB on shared endpoints.
      in_flight: requests of one worker process on their way at the same time.
      timeout: seconds for an answer.
      patience: when to try again; its tries count, its seconds do not.
      max_retry_after: seconds of the longest Retry-After that is obeyed.
    """

    rows: int = 1000
    bytes: int = 1_500_000
    in_flight: int = 4
    timeout: float = 60.0
    patience: Patience = PATIENCE
    max_retry_after: float = MAX_RETRY_AFTER

    def __post_init__(self) -> None:
        if self.rows < 1 or self.in_flight < 1 or self.timeout <= 0 or self.bytes < MIN_REQUEST_BYTES:
            raise ValueError(
                f"{self}: needs rows and in_flight of at least 1, a timeout over 0, {MIN_REQUEST_BYTES} bytes"
            )
