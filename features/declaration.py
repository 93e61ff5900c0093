"""The feature spec as dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from features.kinds import HISTORY, KINDS, REJECT, STATISTICS, Kind
from features.roles import Roles

Path = tuple[Any, ...]
"""The place of a value in a spec: keys and positions from the outside in."""

SCALES = ("linear", "log")
USES = ("score", "reconstruction")
TIME_FORMATS = ("any", "rfc3339", "seconds", "milliseconds")
"""Of an event time, beside patterns; any reads times as `features.roles.event_time` does."""
ACCOUNT = "account"
"""The word for the account in `by` of a history feature."""
KEEP = 200
"""Values of a category that are kept, unless the spec says another number."""


class SpecError(ValueError):
    """A feature spec breaks a rule.

    Attributes:
      path: where, such as ("features", 3, "keep").
      problem: what was expected, what came, and what to write.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{text_of(path)}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


@dataclass(frozen=True)
class Feature:
    """One feature of the model.

    Attributes:
      name: shown to a reviewer, and the name of the input.
      kind: a word of KINDS.
      source: key of a message or column with its value; a dot enters a nested one. That of a time feature is
        the event time's.
      scale: "log" scores the logarithm of a number, which suits amounts; otherwise "linear".
      use: "reconstruction" leaves the feature out of the score.
      missing: REJECT, MEDIAN, OWN, or the number that takes the place of a missing value.
      keep: values of a category that have a rarity of their own; the rest shares one.
      timezone: name of the time zone of a time feature.
      statistic: of a history feature, a word of STATISTICS.
      of: the field that the statistic is made of; None where it needs none.
      by: the field whose values have a history each; None for the account.
      half_life: such as "30d"; None where the statistic has none.
    """

    name: str
    kind: str
    source: str
    scale: str = "linear"
    use: str = "score"
    missing: str | float = REJECT
    keep: int = KEEP
    timezone: str = "UTC"
    statistic: str | None = None
    of: str | None = None
    by: str | None = None
    half_life: str | None = None

    @property
    def rules(self) -> Kind:
        """The entry of KINDS."""
        return KINDS[self.kind]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that the feature makes."""
        return tuple(self.name + suffix for suffix in self.rules.suffixes)


@dataclass(frozen=True)
class FeatureSpec:
    """The features of a model, in order, and the roles of other fields.

    `from_json` makes and checks one; it is hashable, and goes through pickle.

    >>> spec = FeatureSpec.from_json({"features": [
    ...     {"name": "amount", "kind": "number", "scale": "log"}, {"name": "hour", "kind": "time_of_day"}]})
    >>> spec.names, spec.inputs, spec.groups
    (('amount', 'hour'), ('amount', 'hour_sin', 'hour_cos'), (0, 1, 1))
    >>> spec.fields
    ('amount', 'event_time')

    Attributes:
      features: in the order of the model's inputs.
      roles: the other fields.
    """

    features: tuple[Feature, ...]
    roles: Roles = field(default_factory=Roles)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the float32 inputs of the network: one a feature, or two."""
        return tuple(name for feature in self.features for name in feature.inputs)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """For each input, the position of its feature."""
        return tuple(i for i, feature in enumerate(self.features) for _ in feature.inputs)

    @cached_property
    def is_scored(self) -> tuple[bool, ...]:
        """For each input, whether the score measures it."""
        return tuple(feature.use == "score" for feature in self.features for _ in feature.inputs)

    @cached_property
    def is_log(self) -> tuple[bool, ...]:
        """For each input, whether the score measures it on a log scale."""
        return tuple(feature.scale == "log" for feature in self.features for _ in feature.inputs)

    @cached_property
    def is_numeric(self) -> bool:
        """True where each feature is a number of a field of its own, and must be there.

        Then a row of fields is the row of inputs, and there is nothing to learn.
        """
        is_plain = all(feature.kind == "number" and feature.missing == REJECT for feature in self.features)
        return is_plain and len(self.fields) == len(self.features)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The fields that the features are made of, each once: the order of an instance that is a list.

        A history feature is a field of its own, with a number that whoever asks for a score has computed.
        """
        return tuple(self.field_values)

    @cached_property
    def field_values(self) -> Mapping[str, str]:
        """The type of each field: "number", "boolean", "category" or "time"."""
        return {feature.source: feature.rules.value for feature in self.features}

    @cached_property
    def history(self) -> tuple[Feature, ...]:
        """The features that are statistics of earlier transactions."""
        return tuple(feature for feature in self.features if feature.kind == HISTORY)

    @cached_property
    def message_fields(self) -> tuple[str, ...]:
        """The fields that a message, or a row of a table, has: history features are made of some of them."""
        return tuple(self.message_values)

    @cached_property
    def message_values(self) -> Mapping[str, str]:
        """The type of each field of `message_fields`."""
        plain = (feature for feature in self.features if feature.kind != HISTORY)
        values = {feature.source: feature.rules.value for feature in plain}
        for feature in self.history:
            if feature.of is not None:
                values.setdefault(feature.of, STATISTICS[feature.statistic or ""].of or "")
            if feature.by is not None:
                values.setdefault(feature.by, "category")
        return values

    @property
    def categories(self) -> frozenset[str]:
        """The fields of `message_fields` that hold categories."""
        return frozenset(name for name, value in self.message_values.items() if value == "category")

    def to_json(self) -> dict[str, Any]:
        """The spec as plain data, in the form of its YAML file; what has its default is left out."""
        roles = self.roles
        content: dict[str, Any] = {
            "transaction_id": roles.transaction_id,
            "account": roles.account_id,
            "event_time": _time_json(roles),
        }
        content |= {"amount": roles.amount} if roles.amount is not None else {}
        content |= {"label": roles.label} if roles.label is not None else {}
        content |= {"pass_through": list(roles.pass_through)} if roles.pass_through else {}
        content["features"] = [_feature_json(feature) for feature in self.features]
        return content

    @classmethod
    def from_json(cls, content: Any) -> FeatureSpec:
        """Makes and checks a spec of plain data.

        Raises:
          SpecError: it breaks a rule; `path` says where.
        """
        # Deferred: the checks import this module.
        from features.checks import parse

        return parse(content)


def _time_json(roles: Roles) -> Any:
    if roles.time_format == TIME_FORMATS[0]:
        return roles.event_time
    return {"from": roles.event_time, "format": roles.time_format}


def _feature_json(feature: Feature) -> dict[str, Any]:
    values: dict[str, Any] = {
        "statistic": feature.statistic,
        "of": feature.of,
        "by": feature.by or ACCOUNT,
        "half_life": feature.half_life,
        "from": feature.source,
        "scale": feature.scale,
        "missing": feature.missing,
        "keep": feature.keep,
        "timezone": feature.timezone,
    }
    plain = {"from": feature.name, "scale": SCALES[0], "missing": REJECT, "keep": KEEP, "timezone": "UTC"}
    plain |= {"statistic": None, "of": None, "by": None, "half_life": None}
    content: dict[str, Any] = {"name": feature.name, "kind": feature.kind}
    content |= {key: values[key] for key in feature.rules.options if values[key] != plain[key]}
    return content | ({"use": feature.use} if feature.use != USES[0] else {})


def text_of(path: Path) -> str:
    """Writes a path as a reader of YAML would.

    >>> text_of(("features", 3, "keep"))
    'features[3].keep'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


Getter = Callable[[Any], Any]


def getter(field: str) -> Getter:
    """Makes a function that takes the value of a field from an object; None where it is not there.

    >>> getter("merchant.category")({"merchant": {"category": "fuel"}})
    'fuel'
    """
    keys = field.split(".")

    def get(row: Any) -> Any:
        for key in keys:
            if not isinstance(row, Mapping):
                return None
            row = row.get(key)
        return row

    return get
