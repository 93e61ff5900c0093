"""Makes a feature spec of plain data, and checks it: a YAML file, or the manifest of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from features.declaration import (
    ACCOUNT,
    KEEP,
    SCALES,
    TIME_FORMATS,
    USES,
    Feature,
    FeatureSpec,
    Path,
    SpecError,
)
from features.kinds import HISTORY, KINDS, REJECT, STATISTICS
from features.roles import RoleError, Roles
from features.times import is_pattern, is_usable

MAX_FEATURES = 256
MAX_KEEP = 100_000

HALF_LIFE = re.compile(r"([1-9]\d{0,8})([mhd])")
"""Of a history feature: minutes, hours or days."""
MAX_HALF_LIFE_DAYS = 3650

_MINUTES = {"m": 1, "h": 60, "d": 1440}
_NAME = re.compile(r"\w[\w .\-]{0,99}")


def parse(content: Any) -> FeatureSpec:
    """Makes and checks a spec.

    Raises:
      SpecError: it breaks a rule; `path` says where.
    """
    known = ("transaction_id", "account", "event_time", "amount", "label", "pass_through", "features")
    _check_keys(content, (), known)
    roles = _roles(content)
    entries = content.get("features")
    if not isinstance(entries, (list, tuple)) or not entries:
        raise SpecError(("features",), f"expected a list of features, got {_shown(entries)}")
    if len(entries) > MAX_FEATURES:
        raise SpecError(("features",), f"expected at most {MAX_FEATURES} features, got {len(entries)}")
    features = tuple(_feature(entry, ("features", i), roles) for i, entry in enumerate(entries))
    spec = FeatureSpec(features, roles)
    _check_names(spec)
    _check_history(spec)
    _check_fields(spec)
    return spec


def _roles(content: Mapping[str, Any]) -> Roles:
    default = Roles()
    time: Any = content.get("event_time", default.event_time)
    time_path: Path = ("event_time",)
    form = default.time_format
    if isinstance(time, Mapping):
        _check_keys(time, time_path, ("from", "format"))
        form = _time_format(time.get("format", form), (*time_path, "format"))
        time = time.get("from", default.event_time)
        time_path = (*time_path, "from")
    passed = content.get("pass_through", ())
    if not isinstance(passed, (list, tuple)):
        raise SpecError(("pass_through",), f"expected a list of fields, got {_shown(passed)}")
    fields = tuple(_field(name, ("pass_through", i)) for i, name in enumerate(passed))
    twice = next((i for i, name in enumerate(fields) if name in fields[:i]), None)
    if twice is not None:
        raise SpecError(("pass_through", twice), f"{fields[twice]!r} is there twice: remove one")
    transaction_id = _field(content.get("transaction_id", default.transaction_id), ("transaction_id",))
    account_id = _field(content.get("account", default.account_id), ("account",))
    event_time = _field(time, time_path)
    amount, label = (
        None if content.get(key) is None else _field(content[key], (key,)) for key in ("amount", "label")
    )
    try:
        return Roles(transaction_id, account_id, event_time, form, amount, label, fields)
    except RoleError as error:
        raise SpecError(("account" if error.role == "account_id" else error.role,), error.reason) from error


def _feature(entry: Any, path: Path, roles: Roles) -> Feature:
    common = ("name", "kind", "use")
    every = {key for kind in KINDS.values() for key in kind.options}
    _check_keys(entry, path, (*common, *sorted(every)))
    for key in ("name", "kind"):
        if key not in entry:
            raise SpecError(path, f"expected a {key}, got {_shown(entry)}: write {key}: ...")
    name = entry["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(
            (*path, "name"),
            "expected a name of up to 100 letters, digits, blanks, dots, - and _ that begins with a letter, "
            f"got {_shown(name)}: choose another, and write from: with the field",
        )
    kind = _choice(entry["kind"], (*path, "kind"), tuple(KINDS))
    rules = KINDS[kind]
    _check_keys(entry, path, (*common, *rules.options), f" of kind {kind}")
    is_time = rules.value == "time"
    missing = entry.get("missing", REJECT)
    if isinstance(missing, (bool, int)):
        missing = float(missing) if abs(missing) < 2**53 else missing
    if expected := rules.missing_problem(missing):
        raise SpecError((*path, "missing"), f"expected {expected}, got {_shown(missing)}")
    keep = entry.get("keep", KEEP)
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= MAX_KEEP:
        raise SpecError((*path, "keep"), f"expected a number from 1 to {MAX_KEEP}, got {_shown(keep)}")
    if kind == HISTORY:
        return _history(entry, path, name)
    return Feature(
        name,
        kind,
        roles.event_time
        if is_time
        else _field(entry.get("from", name), (*path, "from" if "from" in entry else "name")),
        _choice(entry.get("scale", SCALES[0]), (*path, "scale"), SCALES),
        _choice(entry.get("use", USES[0]), (*path, "use"), USES),
        missing,
        keep,
        _timezone(entry.get("timezone", "UTC"), (*path, "timezone")),
    )


def _history(entry: Mapping[str, Any], path: Path, name: str) -> Feature:
    if "statistic" not in entry:
        raise SpecError(path, f"expected a statistic: write statistic: with one of {', '.join(STATISTICS)}")
    word = _choice(entry["statistic"], (*path, "statistic"), tuple(STATISTICS))
    rules = STATISTICS[word]
    if "by" not in entry:
        raise SpecError(path, f"expected by: write by: {ACCOUNT}, or the field that has a history")
    by = _field(entry["by"], (*path, "by"))
    needs = {"of": rules.of is not None, "half_life": rules.half_life is not None}
    for key, is_needed in needs.items():
        if key in entry and not is_needed:
            raise SpecError((*path, key), f"expected no {key} for the statistic {word}: remove it")
    if rules.of is not None and "of" not in entry:
        raise SpecError(path, f"expected of: write of: with the field that has the {rules.of}")
    half_life = entry.get("half_life", rules.half_life)
    if half_life == "":
        raise SpecError(path, "expected a half-life: write half_life: with a time such as 12h or 30d")
    if half_life is not None and not (
        isinstance(half_life, str)
        and (match := HALF_LIFE.fullmatch(half_life))
        and int(match[1]) * _MINUTES[match[2]] <= MAX_HALF_LIFE_DAYS * 1440
    ):
        problem = f"a half-life such as 90m, 12h or 30d, at most {MAX_HALF_LIFE_DAYS}d"
        raise SpecError((*path, "half_life"), f"expected {problem}, got {_shown(half_life)}")
    return Feature(
        name,
        HISTORY,
        name,
        _choice(entry.get("scale", SCALES[0]), (*path, "scale"), SCALES),
        _choice(entry.get("use", USES[0]), (*path, "use"), USES),
        statistic=word,
        of=_field(entry["of"], (*path, "of")) if rules.of is not None else None,
        by=None if by == ACCOUNT else by,
        half_life=half_life,
    )


def _check_names(spec: FeatureSpec) -> None:
    for values, what in ((spec.names, "name"), (spec.inputs, "input")):
        positions = range(len(spec.names)) if what == "name" else spec.groups
        seen: dict[str, int] = {}
        for name, at in zip(values, positions):  # noqa: B905  Python 3.9
            if name in seen:
                problem = f"the {what} {name!r} is also that of features[{seen[name]}]: choose another name"
                raise SpecError(("features", at, "name"), problem)
            seen[name] = at
    if not any(spec.is_scored):
        raise SpecError(
            ("features",), "no feature is used in the score: leave out use: reconstruction of one"
        )


def _check_history(spec: FeatureSpec) -> None:
    """Checks that a history is made of the message alone, and of fields of the right types."""
    roles = spec.roles
    kinds = {feature.source: feature.rules.value for feature in spec.features if feature.kind != HISTORY}
    names = {feature.name for feature in spec.history}
    taken = (
        (roles.label, "label"),
        (roles.transaction_id, "transaction_id"),
        (roles.event_time, "event_time"),
    )
    for i, feature in enumerate(spec.features):
        if feature.kind != HISTORY:
            if feature.source in names:
                problem = f"{feature.source!r} is the name of a history feature: choose another name for that"
                raise SpecError(
                    ("features", i, "name" if feature.source == feature.name else "from"), problem
                )
            continue
        for key, field, value in (
            ("of", feature.of, STATISTICS[feature.statistic or ""].of),
            ("by", feature.by, "category"),
        ):
            path: Path = ("features", i, key)
            if field is None or value is None:
                continue
            if field in names:
                raise SpecError(path, f"{field!r} is a history feature: name a field of the message")
            role = next((role for name, role in taken if name == field), None)
            if role is not None:
                raise SpecError(path, f"{field!r} is the {role}: name another field of the message")
            if key == "by" and field == roles.account_id:
                raise SpecError(path, f"{field!r} is the account: write by: {ACCOUNT}")
            known = kinds.setdefault(field, value)
            if known != value:
                problem = f"expected a field that is a {value}, got {field!r}, which is a {known} elsewhere"
                raise SpecError(path, problem)


def _check_fields(spec: FeatureSpec) -> None:
    roles = spec.roles
    kinds: dict[str, str] = {}
    for i, feature in enumerate(spec.features):
        path = ("features", i, "name" if feature.source == feature.name else "from")
        for role, source in (("label", roles.label), ("transaction_id", roles.transaction_id)):
            if feature.source == source:
                problem = f"{source!r} is the {role}, which tells nothing of others: remove this feature"
                raise SpecError(path, problem)
        value = kinds.setdefault(feature.source, feature.rules.value)
        if value != feature.rules.value:
            expected = f"expected the kind of the other feature of the field {feature.source!r} ({value})"
            raise SpecError(("features", i, "kind"), f"{expected}, got {feature.kind}")
        if roles.event_time == feature.source and value != "time":
            problem = f"{feature.source!r} is the event time: use kind time_of_day or day_of_week"
            raise SpecError(("features", i, "kind"), problem)
    taken = [(source, where) for source, where in _every_field(spec)]
    for source, where in taken:
        outer = next((other for other, _ in taken if source.startswith(f"{other}.")), None)
        if outer is not None:
            raise SpecError(
                where, f"{source!r} lies within the field {outer!r}, which is a single value here"
            )


def _every_field(spec: FeatureSpec) -> list[tuple[str, Path]]:
    roles = spec.roles
    fields: list[tuple[str | None, Path]] = [
        (roles.transaction_id, ("transaction_id",)),
        (roles.account_id, ("account",)),
        (roles.event_time, ("event_time",)),
        (roles.amount, ("amount",)),
        (roles.label, ("label",)),
        *((feature.source, ("features", i)) for i, feature in enumerate(spec.features)),
        *((feature.of, ("features", i, "of")) for i, feature in enumerate(spec.features)),
        *((feature.by, ("features", i, "by")) for i, feature in enumerate(spec.features)),
    ]
    return [(source, where) for source, where in fields if source is not None]


def _check_keys(content: Any, path: Path, known: Sequence[str], of: str = "") -> None:
    if not isinstance(content, Mapping):
        raise SpecError(path, f"expected keys with values ({', '.join(known)}), got {_shown(content)}")
    unknown = next((key for key in content if key not in known), None)
    if unknown is not None:
        raise SpecError(
            (*path, unknown), f"expected one of the keys{of}: {', '.join(known)}; got {_shown(unknown)}"
        )


def _choice(value: Any, path: Path, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise SpecError(path, f"expected one of {', '.join(choices)}, got {_shown(value)}")
    return value


def _field(value: Any, path: Path) -> str:
    if not isinstance(value, str) or not all(value.split(".")) or len(value) > 300:
        raise SpecError(path, f"expected the name of a field, such as merchant.category, got {_shown(value)}")
    return value


def _time_format(value: Any, path: Path) -> str:
    if isinstance(value, str) and is_pattern(value):
        if is_usable(value):
            return value
        problem = "expected a pattern with day, month and year, such as %d.%m.%Y %H:%M"
        raise SpecError(path, f"{problem}, got {_shown(value)}")
    if value not in TIME_FORMATS:
        choices = ", ".join(TIME_FORMATS)
        raise SpecError(
            path, f"expected one of {choices}, or a pattern such as %d.%m.%Y %H:%M, got {_shown(value)}"
        )
    return str(value)


def _timezone(value: Any, path: Path) -> str:
    # Deferred: reading the data of time zones is needed for time features alone.
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(value).key
    except Exception:  # an unknown one, a path, no text: each has an error of its own
        raise SpecError(path, f"expected a time zone, such as Europe/Berlin, got {_shown(value)}") from None


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."
