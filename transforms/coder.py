"""The coder of record batches: an Arrow IPC stream, between processes and in a shuffle.

Pickle, Beam's fallback, writes the whole buffer under a slice, and Beam would also run it to estimate sizes.
Importing this module registers the coder.
"""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa


class RecordBatchCoder(beam.coders.Coder):
    """Encodes one pyarrow.RecordBatch with its schema."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """The batch as an Arrow IPC stream."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """The batch that `encode` wrote."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Bytes of the batch's own rows, without encoding it."""
        return value.nbytes

    def is_deterministic(self) -> bool:
        """False: equal rows may be laid out differently, so a batch is no key."""
        return False

    def to_type_hint(self) -> type:
        """The Python type this coder is for."""
        return pa.RecordBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
