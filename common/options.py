"""Typed options: one frozen dataclass a concern, declared once, from which argparse gets its flags.

    @dataclass(frozen=True)
    class SinkOptions:
        output: str | None = option(None, metavar="DIR", help="directory for Parquet files")
        overwrite: bool = option(False, help="replace the files of an earlier job")

    add_options(parser, SinkOptions, "sinks")
    sinks = read_options(SinkOptions, parser.parse_args())

A flag has the name of its field. The type of the field says how its text is read: str, int, float, bool
(--flag and --no_flag), Literal (choices), each of them `| None` as well. Other types name a `type`.
A field made by `group` holds the options of one concern.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_FLAG: Final = "flag"
_GROUP: Final = "group"
NO: Final = "--no_"
"""Begins the flag that switches off."""
_T = TypeVar("_T")


class OptionError(ValueError):
    """The options of a command do not fit: the text names the flag, what was expected and what came."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    metavar: str | None = None,
    type: Callable[[str], Any] | None = None,
    choices: Iterable[Any] | None = None,
    nargs: str | None = None,
    action: str | None = None,
) -> Any:
    """Declares a field of an options dataclass, and with it a flag.

    Args:
      default: value where the flag is absent. Without one, the flag is required.
      help: text for people, with an example. `%(default)s` stands for the default.
      metavar: name of the value in the help.
      type: reads the value from its text; by default the type of the field does.
      choices: values that are accepted; by default those of a Literal.
      nargs: as in argparse, for a flag with several values; the field is a tuple.
      action: "append", for a flag that may be repeated; the field is a tuple.
    """
    settings = {"help": help, "metavar": metavar, "type": type, "choices": choices}
    settings |= {"nargs": nargs, "action": action}
    metadata = {_FLAG: {key: value for key, value in settings.items() if value is not None}}
    return dataclasses.field(default=default, metadata=metadata)


def group(title: str | None = None) -> Any:
    """Declares a field that is an options dataclass itself.

    Args:
      title: heading of its flags in the help.
    """
    return dataclasses.field(metadata={_GROUP: title})


def add_options(
    parser: argparse.ArgumentParser,
    options: type,
    title: str | None = None,
    only: Iterable[str] = (),
    hidden: Collection[str] = (),
) -> None:
    """Declares the flags of an options dataclass, under a title of their own where one is named.

    Args:
      parser: takes the flags.
      options: the dataclass.
      title: heading of the flags in the help.
      only: names of the fields to declare; by default all.
      hidden: names of fields that the help leaves out.
    """
    flags = parser.add_argument_group(title) if title else parser
    hints = get_type_hints(options)
    wanted = set(only)
    for field in dataclasses.fields(options):
        if _GROUP in field.metadata:
            add_options(parser, hints[field.name], field.metadata[_GROUP])
        if _FLAG in field.metadata and (not wanted or field.name in wanted):
            settings = _settings(hints[field.name]) | field.metadata[_FLAG]
            if field.name in hidden:
                settings["help"] = argparse.SUPPRESS
            if field.default is dataclasses.MISSING:
                settings["required"] = True
            else:
                is_list = settings.get("action") == "append"  # argparse appends to a copy of the default
                settings["default"] = list(field.default) if is_list else field.default
            flags.add_argument(f"--{field.name}", **settings)


class SwitchAction(argparse.Action):
    """Makes --name and --no_name of a field of type bool; argparse's own action would spell --no-name."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        (flag,) = option_strings
        super().__init__([flag, f"{NO}{flag.removeprefix('--')}"], dest, nargs=0, **settings)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """See argparse.Action."""
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def read_options(options: type[_T], namespace: argparse.Namespace, **more: Any) -> _T:
    """Makes the dataclass from what argparse has read. This is where a Namespace ends.

    Args:
      options: the dataclass; its __post_init__ may raise OptionError.
      namespace: from a parser with the flags of the dataclass.
      more: values of fields that have no flag.
    """
    values = dict(more)
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        if _GROUP in field.metadata and field.name not in values:
            values[field.name] = read_options(hints[field.name], namespace)
        if _FLAG in field.metadata and field.name not in values and hasattr(namespace, field.name):
            value = getattr(namespace, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


def option_values(options: Any) -> dict[str, Any]:
    """Returns the values of an options dataclass by the names of their flags, those of its groups included.

    >>> @dataclasses.dataclass
    ... class Sinks:
    ...     output: str = option("out", help="directory")
    >>> @dataclasses.dataclass
    ... class Job:
    ...     sinks: Sinks = group()
    ...     rows: int = option(7, help="most rows")
    >>> option_values(Job(Sinks()))
    {'output': 'out', 'rows': 7}
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        values |= option_values(value) if _GROUP in field.metadata else {field.name: value}
    return values


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """Makes the flags that stand for values; None is left out.

    >>> flags_of({"rows": 7, "create_tables": False, "dirs": ["a", "b"], "topic": None})
    ['--rows=7', '--no_create_tables', '--dirs=a', '--dirs=b']
    """
    flags: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"{NO}{name}")
        elif isinstance(value, list | tuple):
            flags += [f"--{name}={one}" for one in value]
        elif value is not None:
            flags.append(f"--{name}={value}")
    return flags


def _settings(hint: Any) -> dict[str, Any]:
    """Makes argparse's settings of a type."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not types.NoneType)
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if hint is bool:
        return {"action": SwitchAction}
    return {"type": hint} if hint in (int, float) else {}
