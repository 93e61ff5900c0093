"""Describes the columns of a table: types, missing values, how many values there are, and which."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.arrow import decoded, is_text, python_values
from features.columns import one_column, required_column
from features.roles import plain_name
from features.times import parse_time
from features.values import BLANKS, FALSE_WORDS, TRUE_WORDS

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d")
_TIME_ROWS: Final = 100
_TOP: Final = 1_000
_PATTERNS: Final = tuple(
    day + clock
    for day in (
        "%d.%m.%Y",
        "%d/%m/%Y",
        "%m/%d/%Y",
        "%d-%m-%Y",
        "%m-%d-%Y",
        "%Y/%m/%d",
        "%Y.%m.%d",
        "%d.%m.%y",
    )
    for clock in (" %H:%M:%S", " %H:%M", "")
)
"""Of times, as exports of spreadsheets and banks have them."""


@dataclass(frozen=True)
class Look:
    """A column, and what it looks like.

    Attributes:
      field: its name; a dot enters a struct.
      values: the column; NaN is null.
    """

    field: str
    values: pa.Array

    @property
    def names(self) -> set[str]:
        """The name without case and signs, whole and its last part."""
        return {plain_name(self.field), plain_name(self.field.rpartition(".")[2])}

    @cached_property
    def _counts(self) -> pa.StructArray:
        try:
            return pc.value_counts(self.values.drop_null())
        except pa.ArrowNotImplementedError:  # lists and maps, whose values are as texts as good as any
            return pc.value_counts(pa.array(map(str, python_values(self.values.drop_null())), pa.string()))

    @property
    def n_values(self) -> int:
        """The number of different values."""
        return len(self._counts)

    @cached_property
    def top(self) -> list[tuple[Any, int]]:
        """The most frequent values, and how often each is there."""
        counts = self._counts.field("counts").to_numpy(zero_copy_only=False)
        order = np.argsort(-counts, kind="stable")[:_TOP]
        values = python_values(self._counts.field("values").take(pa.array(order)))
        return list(zip(values, counts[order].tolist(), strict=True))

    @property
    def missing(self) -> float:
        """The share of rows without a value."""
        return self.values.null_count / max(len(self.values), 1)

    @property
    def is_unique(self) -> bool:
        """True where each row has another value."""
        return self.n_values == len(self.values) > 1

    @property
    def is_boolean(self) -> bool:
        """True for booleans, for the words of them, and for whole numbers that are 0 or 1."""
        if pa.types.is_boolean(self.values.type):
            return True
        if self.is_text:
            words = {text.strip(BLANKS).lower() for text, _ in self.top}
            return len(words) == 2 and not words.isdisjoint(TRUE_WORDS) and not words.isdisjoint(FALSE_WORDS)
        is_whole = bool(pa.types.is_integer(self.values.type))
        return is_whole and self.n_values == 2 and {value for value, _ in self.top} == {0, 1}

    @property
    def is_number(self) -> bool:
        """True for integers, floats and decimals."""
        kind = self.values.type
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))

    @property
    def is_text(self) -> bool:
        """True for texts."""
        return bool(pa.types.is_string(self.values.type) or pa.types.is_large_string(self.values.type))

    @cached_property
    def is_time(self) -> bool:
        """True for timestamps, for texts that begin as one, and for texts that a usual pattern reads."""
        if pa.types.is_timestamp(self.values.type):
            return True
        some = self.values.drop_null().slice(0, _TIME_ROWS).to_pylist() if self.is_text else []
        return bool(some) and (all(_TIME.match(text) for text in some) or bool(self.patterns))

    @cached_property
    def patterns(self) -> list[str]:
        """The patterns by which all of the most frequent texts are times; the likelier one first."""
        texts = [text for text, _ in self.top] if self.is_text else []
        return [pattern for pattern in _PATTERNS if texts and all(_is_time(text, pattern) for text in texts)]

    @cached_property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The numbers that are there, in the order of the rows."""
        values = self.values.cast(pa.float64(), safe=False).drop_null().to_numpy(zero_copy_only=False)
        return values[np.isfinite(values)]

    @property
    def is_whole(self) -> bool:
        """True for numbers without fractions."""
        return self.is_number and bool((self.numbers == np.floor(self.numbers)).all())

    @property
    def is_growing(self) -> bool:
        """True for numbers that never become smaller from row to row."""
        return self.is_number and self.n_values > 1 and bool((np.diff(self.numbers) >= 0).all())


def _is_time(text: str, pattern: str) -> bool:
    try:
        parse_time(text, pattern)
    except ValueError:
        return False
    # A text with RFC 3339 is a time by any pattern.
    return not _TIME.match(text)


def looks(table: pa.Table) -> Iterator[Look]:
    """Describes each column; those of structs one by one."""
    for name, kind in fields_of(table.schema):
        column = required_column(table, name)
        if pa.types.is_dictionary(kind):
            column = column.dictionary_decode()
        elif pa.types.is_date(kind):
            column = column.cast(pa.timestamp("us"))
        elif pa.types.is_floating(kind):
            column = pc.if_else(pc.is_nan(column), None, column)
        values = one_column(column)
        texts = decoded(values).column if is_text(values.type) else values
        # Of bytes that are no texts at all, the type says what they are.
        yield Look(name, values if texts.null_count == len(texts) else texts)


def fields_of(fields: Any, outer: str = "") -> Iterator[tuple[str, pa.DataType]]:
    """Names the fields of a schema and their types; those of structs one by one."""
    for field in fields:
        if pa.types.is_struct(field.type):
            yield from fields_of(field.type, f"{outer}{field.name}.")
        else:
            yield outer + field.name, field.type
