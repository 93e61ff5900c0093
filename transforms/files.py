"""Files as sources: JSON lines and Parquet. Any file system that Beam knows."""

from __future__ import annotations

import codecs
import functools
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import FileMetadata

import transforms.coder  # noqa: F401  registers the coder of record batches
from common.compressed import compression, decompressed
from common.files import open_raw, partition_keys
from common.limits import MAX_BATCH_BYTES, SPLIT_BYTES
from transforms.columnar import present_columns
from transforms.decode import MAX_LINE_BYTES
from transforms.gather import Messages
from transforms.metrics import counter
from transforms.rebatch import BATCH_ROWS, rebatch
from transforms.shares import FileColumnsError, FindShares, Range, RowGroups, read_shares, with_keys

BLOCK_BYTES: Final = 1024 * 1024

BLANK_LINES: Final = "blank_lines"
"""Counts lines without a message."""

_SIGNATURE_BYTES: Final = 28
"""Of a footer that is not encrypted, in a file whose columns are (Parquet Modular Encryption, 5.5). Arrow
ends the process where such a column is looked at without its key."""

_DECODE_BYTES: Final = 4 * MAX_BATCH_BYTES
"""Bytes of a Parquet file that are decoded in one go, at most."""


@dataclass
class ReadJsonLines(beam.PTransform):
    """Reads files of lines; it does not decode the lines.

    Input: a pipeline. Output: PCollection of lists of bytes: consecutive lines, without their line ends.
    A line comes out unchanged, valid UTF-8 or not. A blank line is no message: it is left out, and counted as
    `blank_lines`. The mark of UTF-8 at the beginning of a file is no part of its first line.

    A list, because an element a line would cost more than decoding it. Files that end in .gz, .bz2, .zst and
    the like are decompressed, and read by one worker each; one that is cut off or damaged fails the job.

    Attributes:
      pattern: path, glob or directory, local or gs://. No match is an error.
      rows: lines of a list. The last list of a share of a file may be shorter, and so is one that would have
        more than MAX_BATCH_BYTES.
      split_bytes: size of the shares.
      max_line_bytes: a longer line is cut to this length, so that it does not fill the memory;
        transforms.message rejects a line of this length.
    """

    pattern: str
    rows: int = BATCH_ROWS
    split_bytes: int = SPLIT_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Files to ranges, spread over the workers, to lines."""
        split = functools.partial(split_lines, split_bytes=self.split_bytes)
        read = beam.ParDo(_ReadLinesFn(self.rows, self.max_line_bytes)).with_output_types(Messages)
        return begin | "Find" >> FindShares(self.pattern, split) | "Read" >> read


class _ReadLinesFn(beam.DoFn):
    """Lists of shares in; lists of their lines out, without blank lines."""

    def __init__(self, rows: int, max_line_bytes: int) -> None:
        self._limits = rows, max_line_bytes
        self._blank = counter(BLANK_LINES)

    def process(self, shares: list[Range]) -> Iterator[list[bytes]]:
        for lines in read_shares(shares, read_lines, *self._limits):
            messages = lines if all(map(bytes.strip, lines)) else [line for line in lines if line.strip()]
            self._blank.inc(len(lines) - len(messages))
            if messages:
                yield messages


@dataclass
class ReadParquetBatches(beam.PTransform):
    """Reads Parquet files.

    Input: a pipeline. Output: PCollection of pyarrow.RecordBatch in the schema of its file.

    Attributes:
      pattern: path, glob or directory, local or gs://. No match is an error.
      columns: names of the columns to read; empty reads all.
      optional: whether a file may lack some of `columns`; otherwise that is an error.
      batch_rows: rows of a batch. The last of a share of a file may have fewer, and so has one that would be
        larger than MAX_BATCH_BYTES.
      split_bytes: size of the shares, which are whole row groups.
    """

    pattern: str
    columns: Sequence[str] = ()
    optional: bool = False
    batch_rows: int = BATCH_ROWS
    split_bytes: int = SPLIT_BYTES

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Files to row groups, spread over the workers, to record batches."""
        required = () if self.optional else tuple(self.columns)
        split = functools.partial(split_row_groups, columns=required, split_bytes=self.split_bytes)
        read = beam.FlatMap(read_shares, read_row_groups, tuple(self.columns), self.batch_rows)
        shares = begin | "Find" >> FindShares(self.pattern, split)
        return shares | "Read" >> read.with_output_types(pa.RecordBatch)


def split_lines(file: FileMetadata, split_bytes: int = SPLIT_BYTES) -> list[Range]:
    """Divides a file of lines into shares of equal size; a compressed file is one share.

    A short last share would be of one process: several get their shares in turns, and equally many.
    """
    if compression(file.path):
        return [Range(file.path, 0, None)]
    size = file.size_in_bytes
    length = -(-size // max(1, -(-size // split_bytes)))
    return [Range(file.path, start, min(start + length, size)) for start in range(0, size, max(1, length))]


def read_lines(
    share: Range,
    rows: int = BATCH_ROWS,
    max_line_bytes: int = MAX_LINE_BYTES,
    block_bytes: int = BLOCK_BYTES,
    max_bytes: int = MAX_BATCH_BYTES,
) -> Iterator[list[bytes]]:
    """Reads the lines that begin within the share, in lists of `rows`; empty lines also count.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"a": 1}\\n{"a": 2}\\n'); file.flush()
    ...     list(read_lines(Range(file.name, 0, 18)))
    [[b'{"a": 1}', b'{"a": 2}']]

    A share that does not begin at 0 leaves a line that has begun before it to the share before. A list has
    fewer lines where they would have more than `max_bytes`, or than a block where that is larger.

    Raises:
      CompressedFileError: the file is compressed, and cut off or damaged.
    """
    held: list[bytes] = []
    held_bytes = 0
    # Beam's own decompression takes a file that was cut off for a whole one.
    with open_raw(share.path) as file:
        if compression(share.path):
            blocks = decompressed(file, share.path, block_bytes)
        else:
            blocks = _blocks(file, share, block_bytes)
        if share.start == 0:
            blocks = _without_mark(blocks)
        for lines in _lines(blocks, max_line_bytes):
            size = sum(map(len, lines))
            if held and held_bytes + size > max_bytes:
                yield held
                held, held_bytes = [], 0
            held += lines
            held_bytes += size
            if len(held) >= rows:
                while len(held) >= rows:
                    yield held[:rows]
                    del held[:rows]
                held_bytes = sum(map(len, held))
    if held:
        yield held


def parquet_schema(path: str) -> pa.Schema:
    """Reads the columns of a Parquet file.

    Raises:
      FileColumnsError: the file is not Parquet, or is encrypted.
    """
    return _metadata(path).schema.to_arrow_schema()


def _metadata(path: str) -> pq.FileMetaData:
    with open_raw(path) as source:
        try:
            metadata = pq.read_metadata(source)
        except pa.ArrowInvalid as error:
            raise FileColumnsError(f"{path}: not a Parquet file ({error})") from error
        except OSError as error:
            if error.errno is not None:  # of the system, and not Arrow's
                raise
            raise FileColumnsError(f"{path}: cannot be read as Parquet: {error}") from error
        source.seek(-8, io.SEEK_END)
        footer = int.from_bytes(source.read(4), "little")
    if footer - metadata.serialized_size == _SIGNATURE_BYTES:
        raise FileColumnsError(f"{path}: has encrypted columns; write it without encryption")
    return metadata


def split_row_groups(
    file: FileMetadata, columns: Sequence[str] = (), split_bytes: int = SPLIT_BYTES
) -> list[RowGroups]:
    """Divides a Parquet file into shares of about `split_bytes` (uncompressed) and at least one row group.

    Raises:
      FileColumnsError: the file is not Parquet, is encrypted, or lacks one of `columns`.
    """
    metadata = _metadata(file.path)
    names = metadata.schema.to_arrow_schema().names
    missing = [name for name in columns if name not in names]
    if missing:
        raise FileColumnsError(f"{file.path}: no column {', '.join(missing)}; it has {', '.join(names)}")
    shares: list[list[int]] = []
    size = split_bytes
    for number in range(metadata.num_row_groups):
        if size >= split_bytes:
            shares.append([])
            size = 0
        shares[-1].append(number)
        size += metadata.row_group(number).total_byte_size
    return [RowGroups(file.path, tuple(numbers), metadata.num_rows) for numbers in shares]


def read_row_groups(
    share: RowGroups, columns: Sequence[str] = (), batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Reads some row groups, in batches of `batch_rows`. Of `columns` it reads those that the file has.

    Raises:
      FileColumnsError: the file is damaged, or has been replaced since it was divided.
    """
    try:
        yield from _read_row_groups(share, columns, batch_rows)
    except (pa.ArrowException, OSError) as error:
        raise FileColumnsError(f"{share.path}: cannot be read as Parquet: {error}") from error


def _read_row_groups(share: RowGroups, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    with open_raw(share.path) as source:
        # Nanoseconds, Arrow's reading of int96, hold the years to 2262 alone: a later one would wrap around.
        file = pq.ParquetFile(source, coerce_int96_timestamp_unit="us")
        if file.metadata.num_rows != share.file_rows:
            raise FileColumnsError(
                f"{share.path}: expected the {share.file_rows:,} rows that it had when the job began, got "
                f"{file.metadata.num_rows:,}: it was replaced; run the job again"
            )
        names = present_columns(columns, file.schema_arrow.names)
        # Small batches are cut from a larger piece: many small decodings take a fifth longer. Larger pieces
        # than the usual batch would leave the cache before they are parsed.
        rows = _DECODE_BYTES // _row_bytes(file.metadata, share.numbers, names)
        batches = file.iter_batches(
            max(1, min(rows, max(batch_rows, BATCH_ROWS))),
            row_groups=share.numbers,
            columns=names or None,
            use_threads=False,
        )
        keys = partition_keys(share.path)
        for batch in rebatch(batches, batch_rows):
            yield with_keys(batch, keys, columns)


def _row_bytes(metadata: pq.FileMetaData, groups: Sequence[int], names: Sequence[str]) -> int:
    """Returns the bytes of a row, decompressed: the mean of the row group where it is largest."""
    largest = 1
    for group in map(metadata.row_group, groups):
        columns = map(group.column, range(group.num_columns))
        size = sum(
            column.total_uncompressed_size
            for column in columns
            if not names or column.path_in_schema.partition(".")[0] in names
        )
        largest = max(largest, size // max(1, group.num_rows))
    return largest


def _blocks(file: BinaryIO, share: Range, block_bytes: int) -> Iterator[bytes]:
    """The bytes of the lines that begin within the share."""
    left = float("inf") if share.stop is None else share.stop - share.start
    if share.start:
        file.seek(share.start - 1)  # a line end there, and a line begins right at the share
        left += 1 - sum(map(len, _rest_of_line(file, block_bytes)))
    block = b"\n"
    while left > 0 and (block := file.read(int(min(block_bytes, left)))):
        left -= len(block)
        yield block
    if block and not block.endswith(b"\n"):
        yield from _rest_of_line(file, block_bytes)


def _rest_of_line(file: BinaryIO, block_bytes: int) -> Iterator[bytes]:
    """Reads to the next line end, which is part of it."""
    while piece := file.readline(block_bytes):
        yield piece
        if piece.endswith(b"\n"):
            break


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same without the mark (BOM) that editors and exports on Windows put before UTF-8."""
    begin = b""
    while len(begin) < len(codecs.BOM_UTF8) and (block := next(blocks, b"")):
        begin += block
    yield begin.removeprefix(codecs.BOM_UTF8)
    yield from blocks


def _lines(blocks: Iterable[bytes], max_line_bytes: int) -> Iterator[list[bytes]]:
    """The lines of blocks that go on where the one before ended."""
    head = b""
    for block in blocks:
        # It looks for a line end in larger steps than `split` of bytes.
        lines = [line.removesuffix(b"\n") for line in io.BytesIO(block)]
        if not block or block.endswith(b"\n"):
            lines.append(b"")
        lines[0] = (head + lines[0])[:max_line_bytes]
        head = lines.pop()[:max_line_bytes]
        yield lines
    if head:
        yield [head]
