"""Every statement that the product can send to BigQuery, from the functions that build them.

The functions are those whose source holds SQL (`sources`), each called with
every combination of the values below, by name of the parameter. A function that builds SQL therefore takes
what it needs as parameters and returns the text, or the text and its query parameters.
"""

from __future__ import annotations

import datetime as dt
import functools
import importlib
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.cloud import bigquery

from features.ulb import FEATURES
from operations import query
from tests.sql import models, sources
from transforms import tables

SOURCE: Final = "my-project.other.transactions"
"""A table in the layout of the ULB data set, with ids."""
NOON: Final = dt.datetime(2026, 3, 8, 12, tzinfo=dt.UTC)

VALUES: Final[dict[str, Sequence[Any]]] = {
    "connection": (models.CONNECTION,),
    "endpoint": ("projects/my-project/locations/us-central1/endpoints/77",),
    "features": (FEATURES,),
    "full": (False, True),
    "limit": (None, 3, query.INT64_MAX),
    "member": ("serviceAccount:worker@my-project.iam.gserviceaccount.com",),
    "noted": (False, True),
    "operations.query.sql.name": query.names(),
    "path": ("gs://my-bucket/onnx/",),
    "reason": (None, "over the limit", "payload%"),
    "role": ("roles/bigquery.dataEditor",),
    "since": (None, dt.datetime(1, 1, 1, tzinfo=dt.UTC), NOON),
    "source": (SOURCE,),
    "stage": (None, "parse"),
    "step": (1, 3600),
    "stored": (tables.SCORES_TABLE, tables.ALERTS_TABLE, tables.ERRORS_TABLE),
    "version": ("v1",),
    "transforms.tables.alerts_table.name": ("my_alerts",),
    "transforms.tables.error_records_table.name": ("my_letters",),
    "transforms.tables.replayed_records_table.name": ("my_notes",),
    "transforms.tables.scores_table.name": ("my_scores",),
}
"""Values of a parameter, by its name, or by its full name where functions differ. A default is added."""

DATASET: Final = "dataset"
"""The parameter that says where the tables are; given when a statement is built."""


@dataclass(frozen=True)
class Statement:
    """One statement of the product.

    Attributes:
      site: dotted name of the function that builds it.
      arguments: what the function is called with, but for the dataset.
      spec: the table that the statement is about, where the function is a method of its declaration.
    """

    site: str
    build: Callable[..., Any] = field(repr=False)
    arguments: dict[str, Any]
    spec: tables.TableSpec | None = None

    def __str__(self) -> str:
        arguments = [f"{name}={value}" for name, value in self.arguments.items()]
        table = [self.spec.name, str(len(self.spec.schema))] if self.spec else []
        return "-".join([self.site.rpartition(".")[2], *table, *arguments])

    def sql(self, dataset: str) -> tuple[str, list[bigquery.ScalarQueryParameter]]:
        """The text and its parameters, for a dataset."""
        takes_dataset = DATASET in inspect.signature(self.build).parameters
        built = self.build(**self.arguments, **({DATASET: dataset} if takes_dataset else {}))
        return built if isinstance(built, tuple) else (built, [])


@functools.cache
def sites() -> dict[str, list[str]]:
    """The functions of the product that hold SQL, with their strings, and the one that reads .sql files."""
    strings: dict[str, list[str]] = {}
    for literals in sources.product():
        strings |= sources.holders(literals)
    return strings | {"operations.query.sql": []}


def is_of_model(statement: Statement) -> bool:
    """Tells whether a statement makes or asks a model of BigQuery ML."""
    return statement.site.startswith("model.serving.bigquery_ml.")


def statements() -> list[Statement]:
    """Every statement."""
    return [statement for site in sites() if not is_module(site) for statement in variants(site)]


def is_module(site: str) -> bool:
    """Tells whether the SQL of a site is a constant, which is a part of statements that functions build."""
    return site in {sources.module_name(path) for path in sources.product_files(".py")}


def examples() -> list[sources.Example]:
    """The SQL that pages, help texts and messages show; sketches are left out."""
    shown = []
    for path in pages():
        shown += sources.examples(path.read_text(encoding="utf-8"), path.name)
    for literals in sources.product():
        for name, strings in literals.strings.items():
            shown += [example for text in strings for example in sources.examples(text, name)]
    return [example for example in dict.fromkeys(shown) if not example.is_sketch]


def pages() -> list[Path]:
    """The pages, and the texts of the templates."""
    written = [*sources.ROOT.glob("*.md"), *(sources.ROOT / "docs").rglob("*.md")]
    return [*sorted(written), *sources.product_files(".json")]


def variants(site: str) -> Iterator[Statement]:
    """The statements that one function can build.

    Raises:
      LookupError: no values are known for one of its parameters.
    """
    owner, function = _resolve(site)
    if not isinstance(owner, type):
        for arguments in _combinations(site, function):
            yield Statement(site, function, arguments)
        return
    for spec in declared():
        bound = getattr(spec, function.__name__)
        for arguments in _combinations(site, bound):
            yield Statement(site, bound, arguments, spec)


def declared() -> list[tables.TableSpec]:
    """Every table in every variant."""
    specs = []
    for name, function in inspect.getmembers(tables, inspect.isfunction):
        if typing.get_type_hints(function).get("return") is tables.TableSpec:
            specs += [function(**each) for each in _combinations(f"{tables.__name__}.{name}", function)]
    return specs


def _resolve(site: str) -> tuple[Any, Callable[..., Any]]:
    parts = site.split(".")
    for size in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:-1]:
            owner = getattr(owner, part, None)
        function = getattr(owner, parts[-1], None)
        if callable(function):
            return owner, function
    raise LookupError(f"{site} holds SQL and is no function: build the statement in a function of its own")


def _combinations(site: str, function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    hints = typing.get_type_hints(function)
    choices: dict[str, list[Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == DATASET:
            continue
        values = VALUES.get(f"{site}.{name}", VALUES.get(name))
        if values is None:
            raise LookupError(f"{site}: add what its parameter {name!r} can be to VALUES in {__name__}")
        default = [] if parameter.default is parameter.empty else [parameter.default]
        known = [*default, *(value for value in values if value not in default)]
        choices[name] = [value for value in known if value is not None or _takes_none(hints[name])]
    for combination in itertools.product(*choices.values()):
        yield dict(zip(choices, combination, strict=True))


def _takes_none(hint: Any) -> bool:
    return types.NoneType in typing.get_args(hint)
