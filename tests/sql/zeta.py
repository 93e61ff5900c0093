"""ZetaSQL over tables of ours: Google's analyzer of BigQuery's SQL, and its reference implementation."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

from google.cloud import bigquery
from google.protobuf.timestamp_pb2 import Timestamp
from wasmtime import Config
from zetasql import types
from zetasql.core import ZetaSqlLocalService, wasm_client
from zetasql.types import Type, TypeKind

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

_Value: Final = types.Value._PROTO_CLASS


class ZetaSQL:
    """ZetaSQL in this process; its WebAssembly is compiled once, and kept in `cache` for the next run."""

    def __init__(self, cache: Path) -> None:
        settings = cache / "wasmtime.toml"
        settings.write_text(f'[cache]\ndirectory = "{cache}"\n')

        def config() -> Config:
            made = Config()
            made.cache = str(settings)
            return made

        with mock.patch.object(wasm_client, "Config", config):
            self.service = ZetaSqlLocalService()
        every = types.ZetaSQLBuiltinFunctionOptions(language_options=language.language())
        known = self.call("GetBuiltinFunctions", every.to_proto(), types.GetBuiltinFunctionsResponse).function
        self.functions = language.functions(
            {".".join(each.name_path): [form.context_id for form in each.signature] for each in known}
        )

    def call(self, method: str, request: Any, answer: type[types.ProtoModel]) -> Any:
        """The answer, as Google's message.

        The package makes objects of messages, which is slow and loses timestamps. The request is therefore a
        message as well.
        """
        name = f"ZetaSqlLocalService_{method}"
        return self.service.wasm_client.call_grpc_func(name, request, answer._PROTO_CLASS)


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


def type_name(kind: Type) -> str:
    """The name of a type, as in an error of BigQuery."""
    if kind.array_type:
        return f"ARRAY<{type_name(kind.array_type.element_type)}>"
    if kind.struct_type:
        parts = (f"{part.field_name} {type_name(part.field_type)}" for part in kind.struct_type.field)
        return f"STRUCT<{', '.join(parts)}>"
    return TypeKind(kind.type_kind).name.removeprefix("TYPE_")


def value_of(value: Any) -> Any:
    """The message of a Python value, of a row or of a parameter."""
    match value:
        case None:
            return _Value()
        case bool():
            return _Value(bool_value=value)
        case int():
            return _Value(int64_value=value)
        case float():
            return _Value(double_value=value)
        case str():
            return _Value(string_value=value)
        case bytes():
            return _Value(bytes_value=value)
        case dt.datetime():
            moment = Timestamp()
            moment.FromDatetime(value)
            return _Value(timestamp_value=moment)
        case list():
            return _Value(array_value=_Value.Array(element=map(value_of, value)))
        case dict():
            return _Value(struct_value=_Value.Struct(field=map(value_of, value.values())))
    raise TypeError(f"{value!r}: no value of ZetaSQL is known for this type")


def python_of(value: Any, kind: Any) -> Any:
    """The value of a cell of a result, as Google's client gives it; `kind` is the message of its type."""
    name = value.WhichOneof("value")
    if name is None:
        return None
    if name == "array_value":
        return [python_of(each, kind.array_type.element_type) for each in value.array_value.element]
    if name == "struct_value":
        parts = zip(kind.struct_type.field, value.struct_value.field, strict=True)
        return {part.field_name: python_of(each, part.field_type) for part, each in parts}
    if name == "timestamp_value":
        return value.timestamp_value.ToDatetime(dt.UTC)
    return getattr(value, name)


class Catalog:
    """Tables and views as ZetaSQL sees them.

    Args:
      zetasql: the analyzer.
      tables: the columns of each table by its name.
      views: the query of each view by its name. The analyzer knows a view as a table with the columns of its
        query; where statements are executed, the query stands in its place.
      rows: of each table; statements are executed only where all are given.
      further: what else a catalog can hold: connections, models, functions.
    """

    def __init__(
        self,
        zetasql: ZetaSQL,
        tables: Mapping[str, Sequence[bigquery.SchemaField]],
        views: Mapping[str, str] | None = None,
        rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        further: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self._zetasql = zetasql
        self._further = dict(further or {})
        self._views = dict(views or {})
        self._tables: dict[str, list[types.SimpleColumn]] = {}
        self.add(tables)
        for name, query in self._views.items():
            columns = self._prepare(query, ()).columns
            self._tables[name] = [types.parse_proto(each).as_type(types.SimpleColumn) for each in columns]
        self._id = self._register(
            {
                name: [[value_of(row[column.name]) for column in tables[name]] for row in stored]
                for name, stored in (rows or {}).items()
            }
        )

    @property
    def names(self) -> list[str]:
        """The tables and views."""
        return list(self._tables)

    def columns(self, name: str) -> list[tuple[str, str]]:
        """The columns of a table or view, with their types."""
        return [(column.name, type_name(column.type)) for column in self._tables[name]]

    def add(self, tables: Mapping[str, Sequence[bigquery.SchemaField]]) -> None:
        """Adds tables without rows."""
        for name, columns in tables.items():
            self._tables[name] = [types.SimpleColumn(name=each.name, type=type_of(each)) for each in columns]
        self._id = self._register({})

    def _register(self, rows: Mapping[str, Sequence[Sequence[Any]]]) -> int:
        further = {kind: list(things) for kind, things in self._further.items()}
        catalog = types.SimpleCatalog(name="c", builtin_function_options=self._zetasql.functions, **further)
        for name, columns in self._tables.items():
            # The whole name in backquotes is one name; without them, and in parts, each part is one.
            catalog.table.append(types.SimpleTable(name=name, column=columns))
            *path, last = name.rsplit(".", 2)
            if path:
                inner = functools.reduce(_inner, path, catalog)
                inner.table.append(types.SimpleTable(name=last, column=columns))
        message = types.RegisterCatalogRequest(simple_catalog=catalog).to_proto()
        for name, cells in rows.items():
            content = message.table_content[name].table_data
            content.SetInParent()  # a table without rows also has a content
            for row in cells:
                content.row.add().cell.extend(row)
        return int(self._zetasql.call("RegisterCatalog", message, types.RegisterResponse).registered_id)

    def analyze(self, sql: str, parameters: Iterable[bigquery.ScalarQueryParameter] = ()) -> None:
        """Judges a statement.

        Raises:
          zetasql.core.ServerError: BigQuery would refuse the statement.
        """
        request = types.AnalyzeRequest._PROTO_CLASS(
            sql_statement=sql, options=_options(parameters), registered_catalog_id=self._id
        )
        self._zetasql.call("Analyze", request, types.AnalyzeResponse)

    def analyze_condition(self, sql: str, table: str) -> None:
        """Judges a row filter on a table: an expression over its columns, true or false.

        Raises:
          zetasql.core.ServerError: BigQuery would refuse the condition.
        """
        options = _options(())
        for column in self._tables[table]:
            options.expression_columns.add(name=column.name, type=column.type.to_proto())
        for expression in (sql, f"(\n{sql}\n) IS TRUE"):
            request = types.AnalyzeRequest._PROTO_CLASS(
                sql_expression=expression, options=options, registered_catalog_id=self._id
            )
            self._zetasql.call("Analyze", request, types.AnalyzeResponse)

    def execute(
        self, sql: str, parameters: Sequence[bigquery.ScalarQueryParameter] = ()
    ) -> list[dict[str, Any]]:
        """The rows of a query, by the reference implementation."""
        for name, query in self._views.items():
            sql = sql.replace(f"`{name}`", f"({query})")
        prepared = self._prepare(sql, parameters)
        request = types.EvaluateQueryRequest._PROTO_CLASS(prepared_query_id=prepared.prepared_query_id)
        for parameter in parameters:
            request.params.add(name=parameter.name, value=value_of(parameter.value))
        answer = self._zetasql.call("EvaluateQuery", request, types.EvaluateQueryResponse)
        return [
            {
                column.name: python_of(cell, column.type)
                for column, cell in zip(prepared.columns, row.cell, strict=True)
            }
            for row in answer.content.table_data.row
        ]

    def _prepare(self, sql: str, parameters: Iterable[bigquery.ScalarQueryParameter]) -> Any:
        request = types.PrepareQueryRequest._PROTO_CLASS(
            sql=sql, options=_options(parameters), registered_catalog_id=self._id
        )
        return self._zetasql.call("PrepareQuery", request, types.PrepareQueryResponse).prepared


def _inner(catalog: types.SimpleCatalog, name: str) -> types.SimpleCatalog:
    for inner in catalog.catalog:
        if inner.name == name:
            return inner
    catalog.catalog.append(types.SimpleCatalog(name=name))
    return catalog.catalog[-1]


def _options(parameters: Iterable[bigquery.ScalarQueryParameter]) -> Any:
    options = types.AnalyzerOptions._PROTO_CLASS()
    options.CopyFrom(_settings())
    for parameter in parameters:
        kind = Type(type_kind=KINDS[parameter.type_])
        options.query_parameters.add(name=parameter.name, type=kind.to_proto())
    return options


@functools.cache
def _settings() -> Any:
    return types.AnalyzerOptions(
        language_options=language.language(),
        allowed_hints_and_options=language.view_options(),
        default_timezone="UTC",
        error_message_mode=types.ErrorMessageMode.ERROR_MESSAGE_ONE_LINE,
        parameter_mode=types.ParameterMode.PARAMETER_NAMED,
    ).to_proto()
