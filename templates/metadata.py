"""The parameters of the Flex templates, generated from the command-line options of the pipelines.

A template's form in the Google Cloud console, its documentation and its validation come from these files, so
that form and command line agree. `python -m templates.metadata` writes them, `--check` compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import jsonschema

from common.command import CommandError, Parser, command
from common.names import SUBSCRIPTION, TOPIC, Name
from common.options import SwitchAction
from common.values import PAUSE_REGEX, Number, pause
from pipelines import batch, streaming
from transforms.bigquery.methods import METHODS, NEEDS

EXAMPLES: Final = """
  python -m templates.metadata
  python -m templates.metadata --check
"""

PARSERS: Final = {"streaming": streaming.parser, "batch": batch.parser}
TITLES: Final = {
    "streaming": "Transaction anomalies, Pub/Sub to BigQuery",
    "batch": "Transaction anomalies, BigQuery or Cloud Storage to BigQuery or Cloud Storage",
}

_PUBSUB: Final[dict[Any, str]] = {
    TOPIC: "PUBSUB_TOPIC",
    SUBSCRIPTION: "PUBSUB_SUBSCRIPTION",
}
# argparse does not know that a text is a path. Tables stay TEXT: the console wants PROJECT:DATASET.TABLE
# of a BIGQUERY_TABLE, and the pipelines take PROJECT.DATASET.TABLE, as SQL writes it.
_PATHS: Final = {
    "model": "GCS_READ_FOLDER",
    "history": "GCS_READ_FOLDER",
    "shadow_model": "GCS_READ_FOLDER",
    "output": "GCS_WRITE_FOLDER",
    "input": "GCS_READ_FILE",
}
_GCS_REGEX: Final = r"^gs://[^\n\r]+$"
_LEFT_OUT: Final = {"write_method": tuple(name for name in METHODS if NEEDS[name].java)}
"""Choices that the command line has and a template does not."""
_LOCAL: Final = ("help", "processes")
"""Options that only a command line on this machine has."""
_HIDDEN: Final = ("bigquery_endpoint", "bigquery_storage_endpoint", "vertex_api_endpoint")


class MetadataError(ValueError):
    """The metadata would mislead Dataflow or a person."""


def metadata(pipeline: str) -> dict[str, Any]:
    """Makes the metadata of a template, as its metadata.json and its container spec hold it.

    Args:
      pipeline: "streaming" or "batch".

    Raises:
      MetadataError: an option lacks something that a template needs, such as a help text.
    """
    parser = PARSERS[pipeline]()
    content: dict[str, Any] = {
        "name": TITLES[pipeline],
        "description": " ".join((parser.description or "").split()),
        "streaming": pipeline == "streaming",
    }
    if pipeline == "streaming":
        # Rows have deterministic ids and the views keep one of each, so that at-least-once is enough for the
        # tables. The fields are Dataflow's; only the console's default is chosen here.
        content |= {
            "supportsAtLeastOnce": True,
            "supportsExactlyOnce": True,
            "defaultStreamingMode": "AT_LEAST_ONCE",
        }
    content["parameters"] = [
        _parameter(action, group) for group, action in declared(parser) if action.dest not in _LOCAL
    ]
    validate(content)
    return content


def declared(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.Action]]:
    """Returns every option of a parser with the title of its group, in the order of --help."""
    return [(group.title or "", action) for group in parser._action_groups for action in group._group_actions]


def _parameter(action: argparse.Action, group: str) -> dict[str, Any]:
    kind = param_type(action)
    parameter: dict[str, Any] = {
        "name": action.dest,
        "label": action.dest.replace("_", " ").capitalize().replace("sql", "SQL"),
        "helpText": _help(action),
        "isOptional": not action.required,
        "paramType": kind,
        "groupName": _group(group),
    }
    regexes = _regexes(action, kind)
    if regexes:
        parameter["regexes"] = regexes
    if action.choices:
        values = [str(choice) for choice in action.choices if choice not in _LEFT_OUT.get(action.dest, ())]
        parameter["enumOptions"] = [{"value": value, "label": value} for value in values]
    if action.default is not None:
        boolean = isinstance(action.default, bool)
        parameter["defaultValue"] = str(action.default).lower() if boolean else str(action.default)
    if action.dest in _HIDDEN:
        parameter["hiddenUi"] = True
    return parameter


def param_type(action: argparse.Action) -> str:
    """Returns the template's type for an option."""
    if isinstance(action, SwitchAction):
        return "BOOLEAN"
    if action.choices:
        return "ENUM"
    if isinstance(action.type, Number) or action.type in (int, float):
        return "NUMBER"
    return _PUBSUB.get(action.type, _PATHS.get(action.dest, "TEXT"))


def _regexes(action: argparse.Action, kind: str) -> list[str]:
    if isinstance(action.type, Name):
        return [f"^{regex}$" for regex in action.type.regexes]
    if action.type is pause:
        return [f"^{PAUSE_REGEX}$"]
    if kind.startswith("GCS_"):
        return [_GCS_REGEX]
    if kind == "NUMBER":
        whole = action.type.whole if isinstance(action.type, Number) else action.type is int
        return ["^[0-9]+$" if whole else r"^-?[0-9]+(\.[0-9]+)?$"]
    return []


def _help(action: argparse.Action) -> str:
    if not action.help:
        raise MetadataError(f"--{action.dest}: an option of a template needs a help text")
    text = action.help % {"default": action.default, "dest": action.dest}
    text = re.sub(r" ?\(default: [^()]*\)| ?\(default: [^;]*; ([^()]*)\)", r"", text).strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _group(title: str) -> str:
    # "source (one of --topic and --subscription)": the form shows the title, --help all of it.
    plain = title.partition(" (")[0]
    return "General" if plain in ("options", "") else plain[:1].upper() + plain[1:]


def schema() -> dict[str, Any]:
    """Reads the JSON schema of metadata files."""
    text = resources.files("templates").joinpath("schema.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def validate(content: dict[str, Any]) -> None:
    """Checks metadata against the schema, and for faults that a schema cannot express.

    gcloud takes an unknown paramType, a broken regular expression and unknown fields silently.

    Raises:
      MetadataError: names the parameter and what is wrong.
    """
    problems = sorted(
        jsonschema.Draft202012Validator(schema()).iter_errors(content), key=lambda e: list(e.path)
    )
    if problems:
        first = problems[0]
        path = list(first.absolute_path)
        where = "metadata"
        if len(path) >= 2 and path[0] == "parameters":
            where = f"parameter {content['parameters'][path[1]].get('name', path[1])}"
            path = path[2:]
        raise MetadataError(f"{where}: {'.'.join(map(str, path))} {first.message}".replace("  ", " "))
    names = [parameter["name"] for parameter in content["parameters"]]
    for parameter in content["parameters"]:
        where = f"parameter {parameter['name']}"
        if names.count(parameter["name"]) > 1:
            raise MetadataError(f"{where} is declared twice")
        _check_values(parameter, where)


def _check_values(parameter: dict[str, Any], where: str) -> None:
    default = parameter.get("defaultValue")
    for regex in parameter.get("regexes", ()):
        try:
            pattern = re.compile(regex)
        except re.error as error:
            raise MetadataError(f"{where}: regex {regex!r} is broken: {error}") from None
        if default is not None and not pattern.fullmatch(default):
            raise MetadataError(f"{where}: the default {default!r} does not match {regex!r}")
    values = [option["value"] for option in parameter.get("enumOptions", ())]
    if values and default is not None and default not in values:
        raise MetadataError(f"{where}: the default {default!r} is not one of {', '.join(values)}")
    if bool(values) != (parameter["paramType"] == "ENUM"):
        raise MetadataError(f"{where}: enumOptions go with paramType ENUM, and with no other")


def text(pipeline: str) -> str:
    """Returns the content of PIPELINE/metadata.json."""
    return json.dumps(metadata(pipeline), indent=2, ensure_ascii=False) + "\n"


def path(pipeline: str) -> Path:
    """Returns the path of PIPELINE/metadata.json, beside this module."""
    return Path(__file__).with_name(pipeline) / "metadata.json"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: writes or compares the files.

    Raises:
      CommandError: --check finds a difference.
    """
    parser = Parser("python -m templates.metadata", __doc__, EXAMPLES)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    args = parser.parse_args(argv)
    stale = []
    for pipeline in PARSERS:
        file, wanted = path(pipeline), text(pipeline)
        if args.check:
            if not file.is_file() or file.read_text(encoding="utf-8") != wanted:
                stale.append(str(file))
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_text(wanted, encoding="utf-8")
            print(f"Wrote {file}")
    if stale:
        raise CommandError(f"{', '.join(stale)} differ from the options: run python -m templates.metadata")
    return 0


if __name__ == "__main__":
    sys.exit(main())
