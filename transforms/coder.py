"""The coder of record batches: an Arrow IPC stream, between processes and in a shuffle.

Pickle, Beam's fallback, writes the whole buffer under a slice, and Beam would also run it to estimate sizes.
Importing this module registers the coder.
"""

from __future__ import annotations

from typing import Final

import apache_beam as beam
import pyarrow as pa

_COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="lz4")
"""For dead letters, which may be long and alike: a small compressed file can be gigabytes of bad lines, and
FnApiRunner holds all that crosses from one stage to the next."""


class RecordBatchCoder(beam.coders.Coder):
    """Encodes one pyarrow.RecordBatch with its schema."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """The batch as an Arrow IPC stream; compressed where it has payloads."""
        sink = pa.BufferOutputStream()
        options = _COMPRESSED if any(map(pa.types.is_binary, value.schema.types)) else None
        with pa.ipc.new_stream(sink, value.schema, options=options) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """The batch that `encode` wrote."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Bytes of the batch's own rows, without encoding it."""
        return value.nbytes

    def to_type_hint(self) -> type:
        """The Python type this coder is for."""
        return pa.RecordBatch


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
