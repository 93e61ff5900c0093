"""The meaning of BigQuery's errors for an append, and the options that go with it. No Beam here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.api_core import exceptions
from google.cloud.bigquery_storage_v1 import types
from google.rpc import code_pb2, status_pb2

from common.retry import Patience
from transforms.bigquery.rows import MAX_REQUEST_BYTES, MAX_REQUEST_ROWS, SchemaMismatchError

TRANSIENT: Final = frozenset(
    {
        code_pb2.UNAVAILABLE,
        code_pb2.DEADLINE_EXCEEDED,
        code_pb2.RESOURCE_EXHAUSTED,
        code_pb2.INTERNAL,
        code_pb2.ABORTED,
        code_pb2.UNKNOWN,  # the connection ended without a status
        code_pb2.CANCELLED,  # so does a proxy or a server that drains
    }
)
"""google.rpc codes of errors that may pass by themselves."""

_SCHEMA_ERRORS: Final = frozenset({types.StorageError.StorageErrorCode.SCHEMA_MISMATCH_EXTRA_FIELDS})

PATIENCE: Final = Patience(seconds=900.0, first=0.5, longest=8.0)
"""With an outage. A runner of this machine gives a bundle four tries, and a job outlives an hour's outage."""

QUOTA_PATIENCE: Final = Patience(seconds=1800.0, first=1.0, longest=60.0, steady=0.5)
"""With a quota, which refills within minutes, and fills the slower the more often it is asked."""


class AppendError(RuntimeError):
    """BigQuery refuses the request for good, and no single row explains it."""


class TransientAppendError(RuntimeError):
    """The patience is used up. The runner may try the whole bundle again."""


@dataclass(frozen=True)
class AppendOptions:
    """Limits and patience of an Appender.

    Attributes:
      max_request_bytes: bytes of rows in one request.
      max_request_rows: rows in one request.
      window: requests on their way at the same time. It is 1 after a failure, and grows with each success.
      window_bytes: bytes of rows that are sent or wait for it; who adds to more waits.
      response_timeout: seconds to wait for an answer, after which the connection counts as lost.
      longest_timeout: seconds up to which that time doubles with each answer that is late.
      patience: with failures, from the last progress on.
      quota_patience: the same, where a quota is used up.
    """

    max_request_bytes: int = MAX_REQUEST_BYTES
    max_request_rows: int = MAX_REQUEST_ROWS
    window: int = 64
    window_bytes: int = 4 * MAX_REQUEST_BYTES
    response_timeout: float = 60.0
    longest_timeout: float = 480.0
    patience: Patience = PATIENCE
    quota_patience: Patience = QUOTA_PATIENCE

    def patience_with(self, status: status_pb2.Status) -> Patience:
        """Returns the patience that the cause of a failure deserves."""
        return self.quota_patience if status.code == code_pb2.RESOURCE_EXHAUSTED else self.patience


def transport_status(error: exceptions.GoogleAPICallError) -> status_pb2.Status:
    """Makes the status of an answer of the error that ended a call."""
    code = error.grpc_status_code
    status = status_pb2.Status(
        code=code.value[0] if code is not None else code_pb2.UNKNOWN, message=error.message or str(error)
    )
    for detail in error.details or []:
        if hasattr(detail, "SerializeToString"):
            status.details.add().Pack(detail)
    return status


def is_schema_error(status: status_pb2.Status) -> bool:
    """Tells whether the rows have columns that the table lacks."""
    for detail in status.details:
        cause = types.StorageError.pb()()
        if detail.Is(cause.DESCRIPTOR) and detail.Unpack(cause) and cause.code in _SCHEMA_ERRORS:
            return True
    return False


def describe(status: status_pb2.Status) -> str:
    """Returns name of the code and message.

    >>> describe(status_pb2.Status(code=code_pb2.NOT_FOUND, message="no table"))
    'NOT_FOUND: no table'
    """
    return f"{code_pb2.Code.Name(status.code)}: {status.message}"


def permanent_error(stream: str, status: status_pb2.Status) -> Exception:
    """Makes the exception for an answer that no further attempt changes."""
    text = f"{stream}: {describe(status)}"
    if is_schema_error(status):
        return SchemaMismatchError(f"{text}. Create the tables again to add the missing columns.")
    return AppendError(text)
