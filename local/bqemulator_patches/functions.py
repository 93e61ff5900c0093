"""The translation of functions, operators and names."""

from __future__ import annotations

from typing import Any

from bqemulator.sql import translator
from bqemulator.sql.translator import SQLTranslator
from sqlglot import exp
from sqlglot.parsers.bigquery import BigQueryParser

from local.bqemulator_patches.replace import replace


def rewrite_more() -> None:
    r"""Three defects of expressions.

    TO_JSON_STRING writes BYTES as text with escapes; BigQuery writes base64. Fixed for columns that are the
    value itself or a field of a STRUCT(...), not for BYTES deeper inside a column.

    LIKE takes a backslash in the pattern for itself; BigQuery takes it for an escape: `\%` is a percent sign.

    APPROX_QUANTILES(x, 100)[OFFSET(50)] gives the next element, because the index is made 1-based twice.
    """
    stock = SQLTranslator._apply_first_matching_rule

    def apply_first_matching_rule(self: SQLTranslator, node: exp.Expression, tree: exp.Expression) -> bool:
        if isinstance(node, exp.Anonymous) and node.name.upper() == "TO_JSON":
            return _write_bytes_as_base64(node)
        if isinstance(node, exp.Like) and not isinstance(node.parent, exp.Escape):
            node.replace(exp.Escape(this=node.copy(), expression=exp.Literal.string("\\")))
            return True
        if isinstance(node, exp.ApproxQuantile) and isinstance(node.parent, exp.Bracket):
            (index,) = node.parent.expressions
            if isinstance(index, exp.Literal):
                index.replace(exp.Literal.number(int(index.name) - 1))
        return stock(self, node, tree)

    replace(SQLTranslator, "_apply_first_matching_rule", apply_first_matching_rule)


def _write_bytes_as_base64(node: exp.Anonymous) -> bool:
    (value,) = node.expressions
    if isinstance(value, exp.Column):
        node.replace(_json(value))
        return True
    columns = [
        field.expression
        for field in (value.expressions if isinstance(value, exp.Struct) else ())
        if isinstance(field.expression, exp.Column)
    ]
    for column in columns:
        column.replace(_json(column))
    return bool(columns)


def _json(column: exp.Column) -> exp.Case:
    # The type of a column is known to DuckDB alone, so the statement asks for it.
    kind, blob = exp.func("TYPEOF", column.copy()), exp.DataType.build("BLOB", dialect="duckdb")
    encoded = exp.func("BASE64", exp.TryCast(this=column.copy(), to=blob))
    return (
        exp.Case(this=kind).when(exp.Literal.string("BLOB"), _to_json(encoded)).else_(_to_json(column.copy()))
    )


def _to_json(value: Any) -> exp.Anonymous:
    return exp.Anonymous(this="TO_JSON", expressions=[value])


def keep_the_case_of_names() -> None:
    """Defect: names of a result are lower-case where a function of a query over flat tables was rewritten.

    Before it rewrites, the translator resolves names as DuckDB does, without regard to case.
    """
    stock = translator.qualify

    def qualify(tree: exp.Expression, *, dialect: str, **settings: Any) -> exp.Expression:
        return stock(tree, dialect=f"{dialect}, normalization_strategy=case_sensitive", **settings)

    replace(translator, "qualify", qualify)


def count_whole_units() -> None:
    """Defect: TIMESTAMP_DIFF counts the boundaries of units; BigQuery counts whole units between two moments.

    Half a millisecond came out as one where the next millisecond had begun.
    """
    stock = BigQueryParser.FUNCTIONS["TIMESTAMP_DIFF"]

    def timestamp_diff(args: list[Any]) -> exp.Anonymous:
        call = stock(args)
        unit = exp.Literal.string(call.unit.name)
        return exp.Anonymous(this="DATESUB", expressions=[unit, call.expression, call.this])

    BigQueryParser.FUNCTIONS["TIMESTAMP_DIFF"] = timestamp_diff


PATCHES = (rewrite_more, count_whole_units, keep_the_case_of_names)
