"""Recognises the kind of a file by its first bytes: JSON lines, Parquet, CSV, or one that cannot be read."""

from __future__ import annotations

import codecs
import csv
import io
from typing import Final, Literal

HEAD_BYTES: Final = 65_536
"""The bytes that are looked at."""

Kind = Literal["jsonl", "parquet", "csv"]

_PARQUET: Final = (b"PAR1", b"PARE")
"""The second where the footer is encrypted."""
_SIGNATURES: Final = (
    (b"\x1f\x8b", "is compressed by gzip; let its name end in .gz"),
    (b"BZh", "is compressed by bzip2; let its name end in .bz2"),
    (b"\xfd7zXZ\x00", "is compressed by xz; let its name end in .xz"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; let its name end in .zst"),
    (b"PK\x03\x04", "is a zip archive or a workbook; unpack it, or export JSON lines"),
    (b"Obj\x01", "is Avro; convert it to Parquet, CSV or JSON lines"),
    (b"ORC", "is ORC; convert it to Parquet, CSV or JSON lines"),
    (codecs.BOM_UTF16_LE, "is UTF-16; convert it with iconv -f utf-16 -t utf-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16; convert it with iconv -f utf-16 -t utf-8"),
)
DELIMITERS: Final = ",;\t|"
_CSV_COLUMNS: Final = 4
"""A table of transactions has more columns than this."""


def kind(head: bytes) -> Kind:
    """Tells the kind of a file; one that is none of the others counts as JSON lines, which may all be bad.

    >>> kind(b'{"features": []}'), kind(b'"Time","V1","V2","V3","Amount"\\n0,1,2,3,4\\n')
    ('jsonl', 'csv')

    Args:
      head: the first HEAD_BYTES of the file, decompressed, or all of it.
    """
    if head.startswith(_PARQUET):
        return "parquet"
    lines = _text(head).splitlines()[:2]
    if len(lines) == 2 and not any(line.startswith((b"{", b"[")) for line in lines):
        width, other = (len(fields(line, delimiter(lines[0]))) for line in lines)
        if width == other > _CSV_COLUMNS:
            return "csv"
    return "jsonl"


def problem(head: bytes, other: str = "pass --input_format={kind}") -> str:
    """Says what a file is that is no JSON lines, and what to do; "" for one that may be.

    A file with some bad lines may be: each of them becomes a dead letter.

    >>> problem(b'{"features": []}')
    ''
    >>> problem(b'[{"features": []},')
    "is one JSON array; write an object on each line, for example with jq -c '.[]'"

    Args:
      head: the first HEAD_BYTES of the file, decompressed, or all of it.
      other: what to do with one that is Parquet or CSV.
    """
    if (is_kind := kind(head)) != "jsonl":
        name = "Parquet" if is_kind == "parquet" else "CSV"
        return f"is {name}; {other.format(kind=is_kind)}"
    if words := unreadable(head):
        return words
    text = _text(head)
    if text[:1] == b"[" and text[1:].lstrip()[:1] == b"{":
        return "is one JSON array; write an object on each line, for example with jq -c '.[]'"
    if text[:1] == b"{" and text[1:2] in (b"\r", b"\n"):
        return "has JSON that goes over several lines; write an object on each line, for example with jq -c ."
    return ""


def unreadable(head: bytes) -> str:
    """Says what a file is that is neither text nor Parquet, and what to do; "" for one that may be."""
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    if b"\0" in _text(head)[:2]:
        return "is UTF-16 or binary; convert it to UTF-8"
    return ""


def has_objects(head: bytes) -> bool:
    """Tells whether a file begins with an object of JSON."""
    return _text(head)[:1] == b"{"


def delimiter(line: bytes) -> str:
    """Returns what divides the names of the columns in the first line of a CSV file; a comma where none does.

    >>> delimiter(b'"a,b";c;d')
    ';'
    """
    return max(DELIMITERS, key=lambda sign: len(fields(line, sign)))


def fields(line: bytes, delimiter: str) -> list[str]:
    """Splits a line of a CSV file; bytes that are not UTF-8 are replaced."""
    text = io.StringIO(line.decode("utf-8", "replace"))
    try:
        return next(csv.reader(text, delimiter=delimiter), [])
    except csv.Error:  # a field longer than the module takes
        return []


def _text(head: bytes) -> bytes:
    return head.removeprefix(codecs.BOM_UTF8).lstrip()
