"""The forms of transactions: how those of a feature spec are decoded, and become columns. No Beam here."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns import ColumnEncoder, Columns
from features.declaration import FeatureSpec
from features.default import ULB
from features.learnt import NOTHING, Learnt
from features.roles import KEYS, Roles
from features.rows import text_of
from features.times import is_pattern
from features.values import shown
from transforms.decode import Transaction, decoder
from transforms.decode_object import object_decoder
from transforms.number_lists import Block, BlockDecoder, block_decoder
from transforms.schema import transactions_schema

TYPES: Final = {"number": pa.float64(), "boolean": pa.bool_(), "category": pa.string()}
"""Of the columns of raw values, by the type of a field."""


class Assembled(NamedTuple):
    """Rows as columns.

    Attributes:
      features: the inputs of the model, float32 [n, inputs].
      reasons: position of a refused row -> the reason, which names the field.
      inputs: raw values as a struct by field; None where `features` holds them.
    """

    features: npt.NDArray[np.float32]
    reasons: dict[int, str]
    inputs: pa.StructArray | None = None

    def kept(self, is_kept: Sequence[bool]) -> Assembled:
        """Returns some of the rows."""
        inputs = None if self.inputs is None else self.inputs.filter(pa.array(is_kept))
        return Assembled(self.features[np.array(is_kept, bool)], {}, inputs)

    def columns(self) -> list[pa.Array]:
        """The columns of a TRANSACTIONS batch that follow those of KEY_FIELDS."""
        n_inputs = self.features.shape[1]
        lists = pa.FixedSizeListArray.from_arrays(pa.array(self.features.reshape(-1)), n_inputs)
        return [lists] if self.inputs is None else [lists, self.inputs]


class ListForm:
    """Transactions that are lists of numbers, or objects with these keys.

    Args:
      names: of the numbers.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.schema = transactions_schema(len(names))

    def decoder(self, roles: Roles, max_bytes: int) -> Callable[[bytes], Transaction]:
        """Makes the function that decodes a message; see `transforms.decode.decoder`."""
        return decoder(self.names, roles, max_bytes)

    def block_decoder(self, roles: Roles, max_bytes: int, has_texts: bool) -> BlockDecoder | None:
        """Makes the function that decodes some messages in one go, but for times as texts."""
        return block_decoder(roles, max_bytes, len(self.names), has_texts)

    def assemble(
        self, rows: Sequence[Transaction], times: pa.Array, blocks: Sequence[tuple[int, Block]] = ()
    ) -> Assembled:
        """Makes columns of decoded rows.

        Args:
          rows: of `decoder`, and of `block_decoder`.
          times: of the rows; where features are made of them, they are encoded.
          blocks: those of `block_decoder`, each after the number of its first row.
        """
        matrix = self._numbers(rows, blocks)
        reasons: dict[int, str] = {}
        finite = np.isfinite(matrix)
        if np.count_nonzero(finite) < finite.size:
            for k in np.flatnonzero(~finite.all(axis=1)).tolist():
                at = int(np.flatnonzero(~finite[k])[0])
                value = shown(float(rows[k].features[at]))
                reasons[k] = f"features: {self.names[at]} is {value}, not a finite float32"
        return Assembled(matrix, reasons)

    def _numbers(
        self, rows: Sequence[Transaction], blocks: Sequence[tuple[int, Block]]
    ) -> npt.NDArray[np.float32]:
        """The numbers of all rows: those of blocks, and those of the rows between."""
        width = len(self.names)
        parts = []
        end = 0
        for start, block in (*blocks, (len(rows), None)):
            if start > end:
                values = itertools.chain.from_iterable(row.features for row in rows[end:start])
                with np.errstate(over="ignore"):
                    wide = np.fromiter(values, np.float64, (start - end) * width)
                    parts.append(wide.astype(np.float32).reshape(-1, width))
            if block is not None:
                parts.append(block.numbers)
                end = start + len(block.rows)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


class ObjectForm:
    """Transactions that are objects with fields of several types, nested ones among them.

    Args:
      spec: the features.
      learnt: what training learnt of them.
    """

    def __init__(self, spec: FeatureSpec, learnt: Learnt) -> None:
        self.spec = spec
        self.fields = raw_fields(spec)
        # History features are no fields of a message: `transforms.history` fills them.
        carried = self.fields | {feature.name: "number" for feature in spec.history}
        self.kind = pa.struct([pa.field(name, TYPES[value]) for name, value in carried.items()])
        self.schema = transactions_schema(len(spec.inputs), self.kind)
        self._encoder = ColumnEncoder(spec, learnt)

    def decoder(self, roles: Roles, max_bytes: int) -> Callable[[bytes], Transaction]:
        """Makes the function that decodes a message; see `transforms.decode.decoder`."""
        return object_decoder(tuple(self.fields.items()), roles, max_bytes)

    def block_decoder(self, roles: Roles, max_bytes: int, has_texts: bool) -> BlockDecoder | None:
        """Returns None: values of several types are decoded message by message."""
        return None

    def assemble(
        self, rows: Sequence[Transaction], times: pa.Array, blocks: Sequence[tuple[int, Block]] = ()
    ) -> Assembled:
        """Makes columns of decoded rows and their event times; there are no blocks."""
        columns = zip(*(row.features for row in rows), strict=True) if rows else [()] * len(self.fields)
        arrays = {
            name: _array(values, TYPES[self.fields[name]])
            for name, values in zip(self.fields, columns, strict=True)
        }
        return self.encode(arrays, times)

    def encode(self, columns: Columns, times: pa.Array) -> Assembled:
        """Encodes raw columns by field, and event times."""
        encoded = self._encoder.encode({**columns, self.spec.roles.event_time: times})
        empty = pa.nulls(len(times), TYPES["number"])
        arrays = [columns[field.name] if field.name in self.fields else empty for field in self.kind]
        inputs = pa.StructArray.from_arrays(arrays, fields=list(self.kind)) if arrays else _empty(len(times))
        return Assembled(encoded.inputs, encoded.reasons, inputs)


@dataclass(frozen=True)
class Encoding:
    """The features of a model, as its manifest has them.

    Attributes:
      spec: the features.
      learnt: what training learnt of them.
    """

    spec: FeatureSpec = ULB
    learnt: Learnt = field(default=NOTHING, hash=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # A form holds decoders, which do not travel; each process makes its own.
        return Encoding, (self.spec, self.learnt)

    @property
    def is_list(self) -> bool:
        """True where a transaction may be a list of numbers: no other field is needed."""
        roles = self.spec.roles
        names = [*self.spec.fields, *(getattr(roles, key) for key in KEYS)]
        is_amount_there = roles.amount is None or roles.amount in self.spec.fields
        has_plain_time = not is_pattern(roles.time_format)
        return (
            self.spec.is_numeric
            and is_amount_there
            and has_plain_time
            and not any("." in name for name in names)
        )

    @cached_property
    def form(self) -> ListForm | ObjectForm:
        """The form of the transactions."""
        return ListForm(self.spec.fields) if self.is_list else ObjectForm(self.spec, self.learnt)


def raw_fields(spec: FeatureSpec) -> dict[str, str]:
    """Returns the fields of a message that a transaction carries, and their types: features, and the amount.

    >>> raw_fields(ULB)["Amount"]
    'number'
    """
    fields = {name: value for name, value in spec.message_values.items() if value != "time"}
    amount = spec.roles.amount
    return fields if amount is None or amount in fields else {**fields, amount: "number"}


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (TypeError, pa.ArrowException):  # whole numbers among the texts of a category
        return pa.array([None if value is None else text_of(value) for value in values], kind)


def _empty(rows: int) -> pa.StructArray:
    return pa.array([{}] * rows, pa.struct([]))


@functools.cache
def default_encoding() -> Encoding:
    """The encoding of the default spec."""
    return Encoding()
