"""Recognises files that are no JSON lines, by their first bytes: they would be nothing but dead letters."""

from __future__ import annotations

import codecs
from typing import Final

HEAD_BYTES: Final = 65_536
"""The bytes that are looked at."""

_SIGNATURES: Final = (
    (b"PAR1", "is Parquet; pass --input_format=parquet"),
    (b"\x1f\x8b", "is compressed by gzip; let its name end in .gz"),
    (b"BZh", "is compressed by bzip2; let its name end in .bz2"),
    (b"\xfd7zXZ\x00", "is compressed by xz; let its name end in .xz"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; let its name end in .zst"),
    (b"PK\x03\x04", "is a zip archive or a workbook; unpack it, or export JSON lines"),
    (b"Obj\x01", "is Avro; convert it to Parquet or JSON lines"),
    (b"ORC", "is ORC; convert it to Parquet or JSON lines"),
    (codecs.BOM_UTF16_LE, "is UTF-16; convert it with iconv -f utf-16 -t utf-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16; convert it with iconv -f utf-16 -t utf-8"),
)
_CSV_COMMAS: Final = 3
"""A table of transactions has more columns than this."""


def problem(head: bytes) -> str:
    """Says what a file is that is no JSON lines, and what to do; "" for one that may be.

    A file with some bad lines may be: each of them becomes a dead letter.

    >>> problem(b'{"features": []}')
    ''
    >>> problem(b'[{"features": []},')
    "is one JSON array; write an object on each line, for example with jq -c '.[]'"

    Args:
      head: the first HEAD_BYTES of the file, decompressed, or all of it.
    """
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text[:1] == b"[" and text[1:].lstrip()[:1] == b"{":
        return "is one JSON array; write an object on each line, for example with jq -c '.[]'"
    if text[:1] == b"{" and text[1:2] in (b"\r", b"\n"):
        return "has JSON that goes over several lines; write an object on each line, for example with jq -c ."
    if b"\0" in text[:2]:
        return "is UTF-16 or binary; convert it to UTF-8 JSON lines"
    commas = [line.count(b",") for line in text.splitlines()[:2] if not line.startswith((b"{", b"["))]
    if len(commas) == 2 and commas[0] == commas[1] > _CSV_COMMAS:
        return "is CSV; convert it to Parquet or JSON lines"
    return ""
