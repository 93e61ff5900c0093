"""Decompression that notices missing bytes: a file that was cut off is an error, not a shorter file.

Beam's own CompressedFile ends silently where the bytes end, and so loses the rest after a failed copy. No
pipeline here.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Protocol

import zstandard
from apache_beam.io.filesystem import CompressionTypes

from common.command import CommandError

_READ_BYTES: Final = 128 * 1024
_PIECE_BYTES: Final = 1024
"""Bytes for one call of zstd's decompressor, whose output has no limit. A piece of this size becomes at most
32 MiB: four bytes may stand for 128 KiB of the same byte."""

_MAX_ZSTD_WINDOW: Final = 2**31
_GZIP_HEADER: Final = zlib.MAX_WBITS | 16


class CompressedFileError(CommandError, ValueError):
    """A compressed file is cut off or damaged. The text names it."""


class _Decompressor(Protocol):
    """The interface of the decompressors of bz2 and lzma: one member of a file, in blocks of bounded size."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        # A full block may have left some behind in the decompressor itself.
        self.needs_input = not self._zlib.unconsumed_tail and len(content) < max_length
        return content


class _Zstd:
    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj()
        self._data, self._at = b"", 0

    @property
    def eof(self) -> bool:
        return self._zstd.eof

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._data)

    @property
    def unused_data(self) -> bytes:
        return self._zstd.unused_data + self._data[self._at :]

    def decompress(self, data: bytes, _: int) -> bytes:
        if data:
            self._data, self._at = data, 0
        piece = self._data[self._at : self._at + _PIECE_BYTES]
        self._at += len(piece)
        return self._zstd.decompress(piece)


_DECOMPRESSORS: Final[dict[str, Callable[[], _Decompressor]]] = {
    CompressionTypes.BZIP2: bz2.BZ2Decompressor,
    CompressionTypes.DEFLATE: lambda: _Zlib(zlib.MAX_WBITS),
    CompressionTypes.GZIP: lambda: _Zlib(_GZIP_HEADER),
    CompressionTypes.LZMA: lzma.LZMADecompressor,
    CompressionTypes.ZSTD: _Zstd,
}


def compression(path: str) -> str | None:
    """Returns the compression that the ending of a path stands for, by Beam's name; None for no compression.

    >>> compression("a.jsonl.gz"), compression("a.jsonl")
    ('gzip', None)
    """
    found: str = CompressionTypes.detect_compression_type(path)
    return None if found == CompressionTypes.UNCOMPRESSED else found


def decompressed(file: BinaryIO, path: str, block_bytes: int) -> Iterator[bytes]:
    """Yields the content of a compressed file, in blocks of `block_bytes` at most.

    A file may have several members one after the other, as `cat a.gz b.gz` and parallel tools make them.

    Args:
      file: its bytes as they are stored.
      path: tells the compression, and is named in errors.
      block_bytes: of a block. Of zstd up to 32 MiB are decompressed at once where a file is that monotonous.

    Raises:
      CompressedFileError: the file ends within a member, has none at all, or is damaged.
    """
    kind = compression(path)
    assert kind is not None, "the caller asked for the compression"
    member: _Decompressor | None = None
    members = 0
    while data := file.read(min(block_bytes, _READ_BYTES)):
        while data or (member is not None and not member.needs_input):
            if member is None:
                if members and not (data := data.lstrip(b"\0")):
                    break  # padding behind the last member, which tapes and xz have
                member, members = _DECOMPRESSORS[kind](), members + 1
            try:
                content = member.decompress(data, block_bytes)
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
                raise CompressedFileError(f"{path}: is no {kind} file, or damaged: {error}") from error
            for start in range(0, len(content), block_bytes):
                yield content[start : start + block_bytes]
            data = b""
            if member.eof:
                data, member = member.unused_data, None
    if member is not None or not members:
        raise CompressedFileError(
            f"{path}: the {kind} data is cut off in the middle; copy the file again, or write it again"
        )
