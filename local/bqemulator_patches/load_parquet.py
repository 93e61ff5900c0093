"""Parquet files of a load job: their own schema, by BigQuery's conversions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from bqemulator.catalog.models import TableMeta
from bqemulator.domain.errors import UnsupportedFeatureError

from local.bqemulator_patches import rows
from local.bqemulator_patches.load_files import Fields, Loaded, Source, read_error

# https://cloud.google.com/bigquery/docs/loading-data-cloud-storage-parquet#type_conversions
_TYPES: Final[tuple[tuple[Callable[[pa.DataType], bool], str], ...]] = (
    (pa.types.is_integer, "INTEGER"),
    (pa.types.is_floating, "FLOAT"),
    (pa.types.is_boolean, "BOOLEAN"),
    (pa.types.is_string, "STRING"),
    (pa.types.is_large_string, "STRING"),
    (pa.types.is_binary, "BYTES"),
    (pa.types.is_large_binary, "BYTES"),
    (pa.types.is_fixed_size_binary, "BYTES"),
    (pa.types.is_date, "DATE"),
    (pa.types.is_time, "TIME"),
    (pa.types.is_decimal, "NUMERIC"),
    (pa.types.is_null, "STRING"),
)


class Parquet(Source):
    """PARQUET."""

    name = "Parquet"

    def _file(self, path: Path) -> pa.Table:
        try:
            file = pq.ParquetFile(path, coerce_int96_timestamp_unit="us")
            data = file.read()
        except (pa.ArrowException, OSError) as error:
            raise read_error(f"Input file is not in Parquet format. {error}") from error
        leaves = [file.schema.column(index) for index in range(len(file.schema))]
        int96 = {leaf.path for leaf in leaves if leaf.physical_type == "INT96"}
        inferred = bool((self.option("parquetOptions") or {}).get("enableListInference"))
        columns, fields = [], []
        for field, column in zip(data.schema, data.columns, strict=True):
            array = column.combine_chunks()
            if field.name in int96:  # the timestamps of old writers, which are in UTC
                array = array.cast(pa.timestamp("us", tz="UTC"))
            array = _plain(array, inferred)
            columns.append(array)
            fields.append(pa.field(field.name, array.type, nullable=field.nullable))
        return pa.table(columns, schema=pa.schema(fields))

    def schema(self) -> Fields:
        """The schema of the last file in the order of names, which is the one that BigQuery takes."""
        return [_field(field) for field in self._file(max(self.files)).schema]

    def read(self, table: TableMeta, fields: Fields) -> Loaded:
        """Rows by the names of their columns."""
        try:
            return Loaded(pa.concat_tables(rows.fit(self._file(path), table) for path in self.files))
        except (ValueError, pa.ArrowException) as error:
            raise read_error(str(error)) from error


def _field(field: pa.Field) -> dict[str, Any]:
    kind, mode = field.type, "NULLABLE" if field.nullable else "REQUIRED"
    if pa.types.is_list(kind):
        kind, mode = kind.value_type, "REPEATED"
    answer: dict[str, Any] = {"name": field.name, "mode": mode}
    if pa.types.is_struct(kind):
        return answer | {"type": "RECORD", "fields": [_field(child) for child in kind]}
    if pa.types.is_timestamp(kind):
        return answer | {"type": "TIMESTAMP" if kind.tz else "DATETIME"}
    for fits, name in _TYPES:
        if fits(kind):
            return answer | {"type": name}
    raise UnsupportedFeatureError(f"The local BigQuery loads no {kind} from Parquet. Field: {field.name}.")


def _plain(array: pa.Array, inferred: bool) -> pa.Array:
    """An array whose lists, maps and dictionaries are those that BigQuery makes of them.

    A LIST is a record `list` of records `element`, unless the job infers lists. A MAP is one of `key_value`.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return array.dictionary_decode()
    if pa.types.is_struct(kind):
        children = [_plain(array.field(index), inferred) for index in range(kind.num_fields)]
        fields = [
            pa.field(kind.field(index).name, child.type, nullable=kind.field(index).nullable)
            for index, child in enumerate(children)
        ]
        return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null())
    if pa.types.is_map(kind):
        entries = pa.StructArray.from_arrays(
            [_plain(array.keys, inferred), _plain(array.items, inferred)], names=["key", "value"]
        )
        return _record("key_value", array, entries)
    if pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        array = array.cast(pa.list_(kind.value_field))
        kind = array.type
    if pa.types.is_list(kind):
        values = _plain(array.values, inferred)
        if inferred:
            return pa.ListArray.from_arrays(array.offsets, values, mask=array.is_null())
        return _record("list", array, pa.StructArray.from_arrays([values], names=[kind.value_field.name]))
    return array


def _record(name: str, array: pa.Array, entries: pa.StructArray) -> pa.StructArray:
    repeated = pa.ListArray.from_arrays(array.offsets, entries)
    return pa.StructArray.from_arrays([repeated], names=[name], mask=array.is_null())
