"""The translation of queries over tables with nested columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bqemulator.sql import inner_query
from bqemulator.sql.catalog_schema import build_catalog_schema

from local.bqemulator_patches.replace import replace

_NESTED: Final = ("RECORD", "STRUCT")


def keep_nested_columns() -> None:
    """Defect: `SELECT *`, in a view above all, loses the RECORD columns of a table.

    The translator expands the star from a list of columns that leaves out those whose type it cannot map.
    A table with such a column is better not in the list at all: its star then stays a star.
    """

    def schema_of_flat_tables(sql: str, *, project_id: str, catalog: Any) -> dict[str, dict[str, str]]:
        flat: Any = _FlatTables(catalog.get_table)
        return build_catalog_schema(sql, project_id=project_id, catalog=flat)

    replace(inner_query, "build_catalog_schema", schema_of_flat_tables)


class _FlatTables:
    """The catalog as the translator is to see it: without tables that have nested columns."""

    def __init__(self, get_table: Callable[[str, str, str], Any]) -> None:
        self._get_table = get_table

    def get_table(self, project: str, dataset: str, table: str) -> Any:
        meta = self._get_table(project, dataset, table)
        if meta is not None and any(field.type in _NESTED for field in meta.schema_.fields):
            return None
        return meta


PATCHES = (keep_nested_columns,)
