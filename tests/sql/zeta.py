"""ZetaSQL, Google's analyzer of the SQL of BigQuery, and its reference implementation, over tables of ours."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

from google.cloud import bigquery
from google.protobuf.timestamp_pb2 import Timestamp
from wasmtime import Config
from zetasql import types
from zetasql.core import ZetaSqlLocalService, wasm_client
from zetasql.types import Type, TypeKind, Value

from tests.sql import language

KINDS: Final = {
    "BOOL": TypeKind.TYPE_BOOL,
    "BOOLEAN": TypeKind.TYPE_BOOL,
    "BYTES": TypeKind.TYPE_BYTES,
    "FLOAT": TypeKind.TYPE_DOUBLE,
    "FLOAT64": TypeKind.TYPE_DOUBLE,
    "INT64": TypeKind.TYPE_INT64,
    "INTEGER": TypeKind.TYPE_INT64,
    "STRING": TypeKind.TYPE_STRING,
    "TIMESTAMP": TypeKind.TYPE_TIMESTAMP,
}
"""By BigQuery's names, those of its API and those of SQL; more when a table or a parameter needs it."""


def service(cache: Path) -> ZetaSqlLocalService:
    """ZetaSQL in this process; its WebAssembly is compiled once, and kept in `cache` for the next run."""
    settings = cache / "wasmtime.toml"
    settings.write_text(f'[cache]\ndirectory = "{cache}"\n')

    def config() -> Config:
        made = Config()
        made.cache = str(settings)
        return made

    with mock.patch.object(wasm_client, "Config", config):
        return ZetaSqlLocalService()


def type_of(column: bigquery.SchemaField) -> Type:
    """The type of a column, by kind and mode. ZetaSQL knows no REQUIRED."""
    if column.field_type in ("RECORD", "STRUCT"):
        fields = [types.StructField(field_name=part.name, field_type=type_of(part)) for part in column.fields]
        kind = Type(type_kind=TypeKind.TYPE_STRUCT, struct_type=types.StructType(field=fields))
    else:
        kind = Type(type_kind=KINDS[column.field_type])
    if column.mode == "REPEATED":
        return Type(type_kind=TypeKind.TYPE_ARRAY, array_type=types.ArrayType(element_type=kind))
    return kind


def value_of(value: Any) -> Value:
    """A Python value, of a row or of a parameter."""
    match value:
        case None:
            return Value()
        case bool():
            return Value(bool_value=value)
        case int():
            return Value(int64_value=value)
        case float():
            return Value(double_value=value)
        case str():
            return Value(string_value=value)
        case bytes():
            return Value(bytes_value=value)
        case dt.datetime():
            moment = Timestamp()
            moment.FromDatetime(value)
            return Value(timestamp_value=moment)
        case list():
            return Value(array_value=Value.Array(element=[value_of(each) for each in value]))
        case dict():
            return Value(struct_value=Value.Struct(field=[value_of(each) for each in value.values()]))
    raise TypeError(f"{value!r}: no value of ZetaSQL is known for this type")


def python_of(value: Any, kind: Type) -> Any:
    """The Python value of a cell of a result, as Google's client gives it."""
    name = value.WhichOneof("value")
    if name is None:
        return None
    if name == "array_value":
        return [python_of(each, kind.array_type.element_type) for each in value.array_value.element]
    if name == "struct_value":
        parts = kind.struct_type.field
        return {
            part.field_name: python_of(each, part.field_type)
            for part, each in zip(parts, value.struct_value.field, strict=True)
        }
    if name == "timestamp_value":
        return value.timestamp_value.ToDatetime(dt.UTC)
    return getattr(value, name)


class Catalog:
    """Tables and views as ZetaSQL sees them.

    Attributes:
      views: the query of each view by its name. The analyzer knows a view as a table with the columns of its
        query; where statements are executed, the query stands in its place.
    """

    def __init__(
        self,
        service: ZetaSqlLocalService,
        tables: Mapping[str, Sequence[bigquery.SchemaField]],
        views: Mapping[str, str] | None = None,
        rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        self._service = service
        self._functions = language.functions(service)
        self._tables = {
            name: [(column.name, type_of(column)) for column in columns] for name, columns in tables.items()
        }
        self._content = {
            name: types.TableContent(
                table_data=types.TableData(
                    row=[
                        types.TableData.Row(cell=[value_of(row[column.name]) for column in tables[name]])
                        for row in stored
                    ]
                )
            )
            for name, stored in (rows or {}).items()
        }
        self._id = self._register()
        self.views = dict(views or {})
        for name, query in self.views.items():
            self._tables[name] = self._columns(query)
        if self.views:
            self._id = self._register()

    def _register(self) -> int:
        made = [
            types.SimpleTable(
                name=name, column=[types.SimpleColumn(name=column, type=kind) for column, kind in columns]
            )
            for name, columns in self._tables.items()
        ]
        catalog = types.SimpleCatalog(name="c", table=made, builtin_function_options=self._functions)
        answer = self._service.register_catalog(simple_catalog=catalog, table_content=self._content)
        return int(answer.registered_id)

    def _columns(self, query: str) -> list[tuple[str, Type]]:
        prepared = self._prepare(query, ())
        self._service.unprepare_query(prepared_query_id=prepared.prepared_query_id)
        return [(column.name, column.type) for column in prepared.columns]

    def analyze(self, sql: str, parameters: Iterable[bigquery.ScalarQueryParameter] = ()) -> Any:
        """The resolved statement.

        Raises:
          zetasql.core.ServerError: BigQuery would refuse the statement.
        """
        answer = self._service.analyze(
            sql_statement=sql, options=_options(parameters), registered_catalog_id=self._id
        )
        return answer.resolved_statement

    def analyze_condition(self, sql: str, table: str) -> Type:
        """The type of a row filter over the columns of a table.

        Raises:
          zetasql.core.ServerError: BigQuery would refuse the expression.
        """
        options = _options(())
        options.expression_columns = [
            types.AnalyzerOptions.QueryParameter(name=name, type=kind) for name, kind in self._tables[table]
        ]
        answer = self._service.analyze(
            sql_expression=sql, options=options, registered_catalog_id=self._id
        )
        return answer.resolved_expression.type

    def execute(
        self, sql: str, parameters: Sequence[bigquery.ScalarQueryParameter] = ()
    ) -> list[dict[str, Any]]:
        """The rows of a query, by the reference implementation."""
        for name, query in self.views.items():
            sql = sql.replace(f"`{name}`", f"({query})")
        prepared = self._prepare(sql, parameters)
        request = types.EvaluateQueryRequest(
            prepared_query_id=prepared.prepared_query_id,
            params=[types.Parameter(name=each.name, value=value_of(each.value)) for each in parameters],
        )
        # The package's own reading of an answer loses timestamps.
        answer = self._service.wasm_client.call_grpc_func(
            "ZetaSqlLocalService_EvaluateQuery",
            request.to_proto(),
            types.EvaluateQueryResponse._PROTO_CLASS,
        )
        self._service.unprepare_query(prepared_query_id=prepared.prepared_query_id)
        return [
            {
                column.name: python_of(cell, column.type)
                for column, cell in zip(prepared.columns, row.cell, strict=True)
            }
            for row in answer.content.table_data.row
        ]

    def _prepare(self, sql: str, parameters: Iterable[bigquery.ScalarQueryParameter]) -> Any:
        return self._service.prepare_query(
            sql=sql, options=_options(parameters), registered_catalog_id=self._id
        ).prepared


def _options(parameters: Iterable[bigquery.ScalarQueryParameter]) -> types.AnalyzerOptions:
    return types.AnalyzerOptions(
        language_options=language.language(),
        allowed_hints_and_options=language.view_options(),
        default_timezone="UTC",
        error_message_mode=types.ErrorMessageMode.ERROR_MESSAGE_ONE_LINE,
        parameter_mode=types.ParameterMode.PARAMETER_NAMED,
        query_parameters=[
            types.AnalyzerOptions.QueryParameter(name=each.name, type=Type(type_kind=KINDS[each.type_]))
            for each in parameters
        ],
    )
