"""Reads a feature spec from a YAML file. A mistake is refused with its line, the key, and what to write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from common.command import CommandError
from features import declaration
from features.declaration import FeatureSpec, SpecError

MAX_BYTES: Final = 1024 * 1024
"""A spec of the most features, each with all its keys, is a tenth of this."""


class SpecFileError(CommandError):
    """A file is no feature spec; the text names the line, the key and what to write."""


class _Loader(yaml.SafeLoader):
    """Reads YAML without its traps: of the words for a boolean only true and false, and dates are texts.

    A key that is there twice is an error, where the last one would count. So is an alias, which a spec does
    not need, and which can make a short file endless.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """See yaml.SafeLoader."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "expected a value, got an alias (*)", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See yaml.SafeLoader."""
        names = [key.value for key, _ in node.value]
        for at, (key, _) in enumerate(node.value):
            if key.value in names[:at]:
                problem = f"the key {key.value!r} is there twice: remove one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


_TAGS: Final = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAGS[0], re.compile("^(?:[Tt]rue|[Ff]alse)$"), list("tTfF"))


def read(path: str | Path) -> FeatureSpec:
    """Reads and checks the feature spec in a YAML file.

    Raises:
      SpecFileError: there is no such file, it is no YAML, or the spec breaks a rule.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecFileError(
            f"{path}: expected a feature spec (YAML): {error.strerror}; write one with anomaly features infer"
        ) from error
    if len(content) > MAX_BYTES:
        raise SpecFileError(
            f"{path}: expected a feature spec of at most {MAX_BYTES:,} bytes, got a longer file"
        )
    return parse(content, str(path))


def parse(content: str | bytes, name: str = "features.yaml") -> FeatureSpec:
    """Reads a spec from YAML text.

    >>> parse("features:\\n- {name: amount, kind: number}").names
    ('amount',)

    Args:
      content: the text.
      name: of the file, for errors.

    Raises:
      SpecFileError: the text is no YAML, or the spec breaks a rule.
    """
    try:
        loader = _Loader(content)
        root = loader.get_single_node()
        plain = loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise SpecFileError(f"{name}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or ["nested too deeply"])[0]
        raise SpecFileError(f"{name}: expected YAML: {reason}") from error
    try:
        return FeatureSpec.from_json(plain)
    except SpecError as error:
        raise SpecFileError(f"{name}, line {_line(root, error.path)}: {error}") from error


def _line(node: yaml.Node | None, path: declaration.Path) -> int:
    """Returns the line, from 1, of the innermost part of a path that is there."""
    line = node.start_mark.line if node else 0
    for part in path:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line
    return line + 1
