"""Models of BigQuery ML, a connection and ML.PREDICT, as ZetaSQL sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.cloud import bigquery
from zetasql import types
from zetasql.types import SignatureArgumentKind

from tests.sql.zeta import type_of

CONNECTION: Final = "my-project.us.vertex"
_FIXED_OUTPUT: Final = types.FunctionEnums.TableValuedFunctionType.FIXED_OUTPUT_SCHEMA_TVF
_OPTIONS: Final = types.TableValuedFunctionOptions()
Columns = Mapping[str, tuple[str, str]]
"""The type and mode of a column by its name, as in a schema of BigQuery."""


def _relation(columns: Columns, extra: bool = False) -> types.FunctionArgumentType:
    schema = types.TVFRelation(
        column=[
            types.TVFRelationColumn(name=name, type=type_of(bigquery.SchemaField(name, kind, mode)))
            for name, (kind, mode) in columns.items()
        ]
    )
    return types.FunctionArgumentType(
        kind=SignatureArgumentKind.ARG_TYPE_RELATION,
        num_occurrences=1,
        options=types.FunctionArgumentTypeOptions(
            relation_input_schema=schema, extra_relation_input_columns_allowed=extra
        ),
    )


def predicting(names: Sequence[str], inputs: Columns, outputs: Columns) -> dict[str, list[Any]]:
    """A connection, models of these names, and the ML.PREDICT that they have.

    Its query must have the columns of `inputs`, and may have more; its answer has `outputs`. In BigQuery it
    also passes the columns of the query on: here the one of the id.
    """
    model = types.FunctionArgumentType(kind=SignatureArgumentKind.ARG_TYPE_MODEL, num_occurrences=1)
    passed_on = {"transaction_id": ("STRING", "NULLABLE")}
    signature = types.FunctionSignature(
        argument=[model, _relation(passed_on | dict(inputs), extra=True)],
        return_type=_relation(passed_on | dict(outputs)),
        context_id=1,
    )
    predict = types.TableValuedFunction(
        name_path=["ML", "PREDICT"], signature=signature, type=_FIXED_OUTPUT, options=_OPTIONS
    )
    return {
        "connection": [types.SimpleConnection(name=CONNECTION)],
        "model": [types.SimpleModel(name=name, id=number) for number, name in enumerate(names, 1)],
        "catalog": [types.SimpleCatalog(name="ML", custom_tvf=[predict])],
    }
