"""Guesses a first feature spec from the columns of a table, with the reason of each choice as a comment."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.output import safe_text
from features.declaration import KEEP
from features.looks import Look, looks
from features.roles import LABEL_NAMES, ROLE_NAMES

AMOUNT_NAMES: Final = frozenset(
    {
        "amount",
        "amt",
        "transactionamount",
        "txamount",
        "transamount",
        "paymentamount",
        "amountusd",
        "amounteur",
        "betrag",
        "montant",
        "importe",
        "importo",
        "bedrag",
        "valor",
    }
)
RARE_SHARE: Final = 0.1
"""One of two values that is rarer may be the label of a table that names none."""
CODE_NAME: Final = re.compile(r"(code|mcc|id|type|category|country|zip|bin|number|no)$")
"""A whole number with such a name is a category."""
FEW: Final = 12
"""A whole number with at most so many values is a category."""
UNIQUE_SHARE: Final = 0.5
"""A text with more values than this share of the rows tells rows apart, and not kinds of rows."""
KEPT_SHARE: Final = 0.5
"""A text whose kept values are a smaller share of the rows is an id of something, and not a kind of rows."""
SKEWED: Final = 20.0
"""A number is taken on a log scale if 1 in 1,000 is that many times the median, zeros apart."""
EPOCH: Final = (3e8, 5e9)
"""Numbers between are taken for seconds since 1970: years 1979 to 2128."""

_OTHER_TIME: Final = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\b")
_PLAIN: Final = re.compile(r"[A-Za-z_][\w\-]*(\.[\w\-]+)*")
_NAME: Final = re.compile(r"\w[\w .\-]{0,99}")
_WORDS: Final = ("true", "false", "null")
_SHOWN: Final = 3


def guess(table: pa.Table, source: str) -> str:
    """Writes a first feature spec for a table, as YAML with comments.

    >>> print(guess(pa.table({"amount": [12.5, 900.0, 31.0], "country": ["NZ", "NZ", "DE"]}), "cards.csv"))
    # A first feature spec, guessed from 3 rows of cards.csv. Read the comments, and change what you know
    # better. `anomaly features check` shows what becomes of each column.
    amount: amount  # shown to a reviewer beside the score
    features:
    - {name: amount, kind: number, scale: log}  # from 12.5 to 900, half of them up to 31
    - {name: country, kind: category}  # 2 values: NZ 67 %, DE 33 %

    Args:
      table: the first rows.
      source: its name, for the comment.
    """
    columns = list(looks(table))
    roles = _roles(columns)
    lines = [
        f"# A first feature spec, guessed from {table.num_rows:,} rows of {safe_text(source)}. "
        "Read the comments, and change what you know",
        "# better. `anomaly features check` shows what becomes of each column.",
        *(_line(f"{key}: {_role(column, key)}", why) for key, (column, why) in roles.items()),
        "features:",
    ]
    left_out: list[str] = []
    fields = {column.field for column in columns}
    taken = {column.field for key, (column, _) in roles.items() if key != "amount"}
    texts: list[Look] = []
    for i, column in enumerate(columns):
        if column.field in taken:
            continue
        if why := _reason_against(column, roles):
            left_out.append(f"# {_scalar(column.field)}: {safe_text(why)}")
        else:
            name = re.sub(r"[^\w .\-]+", "", column.field).strip()
            if not _NAME.fullmatch(name) or (name != column.field and name in fields):
                name = f"column {i + 1}"
            lines.append(_feature(column, name, is_amount=roles.get("amount", (None,))[0] is column))
            texts += [column] if column.is_text else []
    if "event_time" in roles:
        why = "better the customers' zone"
        if roles["event_time"][0].patterns:
            why = "the times have no zone: by UTC their clock stays as it is"
        lines.append(_line("- {name: time_of_day, kind: time_of_day, timezone: UTC}", why))
        lines.append(_line("- {name: day_of_week, kind: day_of_week, timezone: UTC}", "the same"))
    if {"account", "event_time"} <= {*roles}:
        lines += _history(roles.get("amount", (None,))[0], texts[0] if texts else None)
    return "\n".join([*lines, *(["# Columns that are no features:", *left_out] if left_out else [])])


def _roles(columns: Sequence[Look]) -> dict[str, tuple[Look, str]]:
    """The columns of the roles, by the key of the spec, each with the reason."""
    rules = {
        "transaction_id": (
            ROLE_NAMES["transaction_id"],
            lambda look: look.is_unique,
            "another one in each row",
        ),
        "account": (
            ROLE_NAMES["account_id"],
            lambda look: not (look.is_unique or look.is_boolean),
            "for a history of each account",
        ),
        "event_time": (ROLE_NAMES["event_time"], _is_event_time, "when the transaction took place"),
        "amount": (AMOUNT_NAMES, lambda look: look.is_number, "shown to a reviewer beside the score"),
        "label": (LABEL_NAMES, lambda look: look.n_values <= 2, "1 is a fraud; for training alone"),
    }
    roles: dict[str, tuple[Look, str]] = {}
    for key, (names, fits, why) in rules.items():
        named = [look for look in columns if look.names & names and fits(look)]
        if not named and key == "event_time":
            named = [look for look in columns if look.is_time]
        if named:
            # The whole name before its last part: "id" before "merchant.id".
            chosen = min(named, key=lambda look: look.field.count("."))
            if key == "event_time" and chosen.patterns[1:]:
                why += f"; or is its format {' or '.join(chosen.patterns[1:])}?"
            roles[key] = (chosen, why)
    return roles


def _role(look: Look, key: str) -> str:
    """The value of a role: the field, and the pattern of a time that has one."""
    if key == "event_time" and look.patterns:
        return f"{{from: {_scalar(look.field)}, format: {json.dumps(look.patterns[0])}}}"
    return _scalar(look.field)


def _is_event_time(look: Look) -> bool:
    if look.is_time or not look.is_number or not len(look.numbers):
        return look.is_time
    least, most = float(look.numbers.min()), float(look.numbers.max())
    return any(EPOCH[0] * unit <= least <= most <= EPOCH[1] * unit for unit in (1, 1e3, 1e6, 1e9))


def _reason_against(look: Look, roles: Mapping[str, tuple[Look, str]]) -> str:
    """Says why a column is no feature, and the role that it may have; "" where it is a feature."""
    kind = look.values.type
    label = roles["label"][0] if "label" in roles else None
    if look.n_values == 0:
        return "has no values"
    if look.n_values == 1 and not look.missing:
        return f"has one value, {look.top[0][0]}"
    if label is not None and _tells(look, label):
        return f"its value alone tells {label.field}: it looks as if it were known afterwards only"
    if look.is_time:
        return "a second time; its distance from the event time may be worth a number"
    if look.is_text and look.top and all(_OTHER_TIME.match(text) for text, _ in look.top):
        return (
            f"a time in a form that is not known, such as {_short(look.top[0][0])}; to use it, write "
            f'event_time: {{from: {_scalar(look.field)}, format: "%d.%m.%Y"}} with its pattern'
        )
    if label is None and _is_rare_flag(look):
        return (
            f"{_shares(look)}: if it says which rows are frauds, write label: {_scalar(look.field)}; "
            "if it is known when a transaction comes, it may be a feature"
        )
    if look.is_text and look.n_values > max(UNIQUE_SHARE * len(look.values), FEW):
        if look.is_unique and "transaction_id" not in roles:
            return f"another value in each row; if it is the id, write transaction_id: {_scalar(look.field)}"
        return f"{look.n_values:,} values in {len(look.values):,} rows tell rows apart, not kinds of rows"
    if look.is_text and look.n_values > KEEP and _kept(look) < KEPT_SHARE:
        role = "" if "account" in roles else f"; if it is the account's, write account: {_scalar(look.field)}"
        return (
            f"{look.n_values:,} values, the {KEEP} most frequent are {_percent(_kept(look))} of the rows: "
            f"an id, not a kind of rows{role}"
        )
    if look.is_whole and look.is_unique and (look.is_growing or _is_code(look)):
        return "counts the rows, or is an id"
    if not (look.is_text or look.is_number or pa.types.is_boolean(kind)):
        return f"is {kind}, and a feature is a number, a boolean or a category"
    return ""


def _is_rare_flag(look: Look) -> bool:
    return look.n_values == 2 and not look.missing and look.top[1][1] < RARE_SHARE * len(look.values)


def _tells(look: Look, label: Look) -> bool:
    """Finds whether each of a few values, or of them and none, has one label only, where labels differ."""
    groups = look.n_values + bool(look.missing)
    if not 2 <= groups <= FEW or label.n_values != 2 or label.missing:
        return False
    pairs = pa.table({"value": look.values, "label": label.values}).group_by(["value", "label"]).aggregate([])
    return pairs.num_rows == groups


def _is_code(look: Look) -> bool:
    return any(CODE_NAME.search(name) for name in look.names)


def _kept(look: Look) -> float:
    """The share of the values that are kept, by default, among those that are there."""
    return sum(count for _, count in look.top[:KEEP]) / max(len(look.values) - look.values.null_count, 1)


def _feature(look: Look, name: str, is_amount: bool) -> str:
    source = {} if name == look.field else {"from": look.field}
    is_missing = f"; {_percent(look.missing)} missing" if look.missing else ""
    if look.is_boolean:
        missing = {"missing": "median"} if look.missing else {}
        return _entry({"name": name, "kind": "boolean"} | source | missing, _shares(look) + is_missing)
    is_few = look.n_values <= FEW and pa.types.is_integer(look.values.type)  # 10.0 is rather a measure
    if look.is_text or (look.is_whole and not is_amount and (is_few or _is_code(look))):
        missing = {"missing": "own"} if look.missing else {}
        keep = {"keep": KEEP} if look.n_values > KEEP else {}
        why = f"{look.n_values:,} values: {_shares(look)}"
        if keep:
            why += f"; the {KEEP} most frequent are {_percent(_kept(look))} of the rows"
        return _entry({"name": name, "kind": "category"} | source | keep | missing, why + is_missing)
    numbers = look.numbers
    least, half, most = (float(numbers.min()), float(np.median(numbers)), float(numbers.max()))
    is_skewed = least >= 0 and float(np.quantile(numbers, 0.999)) > SKEWED * _usual(numbers)
    content: dict[str, Any] = {"name": name, "kind": "number"} | source
    content |= {"scale": "log"} if least >= 0 and (is_amount or is_skewed) else {}
    content |= {"missing": "median"} if look.missing else {}
    why = f"from {least:g} to {most:g}, half of them up to {half:g}"
    if look.is_growing and not is_amount:
        content["use"] = "reconstruction"
        why = "grows from row to row: in the score, whatever comes later would be an anomaly"
    return _entry(content, why + is_missing)


def _history(amount: Look | None, kind: Look | None) -> list[str]:
    """Features of an account's earlier transactions, as comments: a job with them has to know these too."""
    entries = [{"name": "payments_in_an_hour", "statistic": "count", "half_life": "1h"}]
    if amount is not None:
        level = {"name": "amount_level", "statistic": "deviation", "of": amount.field, "half_life": "30d"}
        entries.insert(0, level)
    if kind is not None:
        name = "new_" + re.sub(r"\W+", "_", kind.field)
        entries.append({"name": name, "statistic": "novelty", "of": kind.field})
    bodies = (", ".join(f"{key}: {_scalar(value)}" for key, value in entry.items()) for entry in entries)
    return [
        "# Usual or not for the account, by its earlier transactions. Take the # away to use one:",
        *(f"# - {{kind: history, by: account, {body}}}" for body in bodies),
    ]


def _usual(numbers: npt.NDArray[np.float64]) -> float:
    """Returns the median of the numbers that are not 0: most rows have no discount."""
    return float(np.median(numbers[numbers > 0])) if (numbers > 0).any() else math.inf


def _entry(content: dict[str, Any], why: str) -> str:
    body = ", ".join(
        f"{key}: {value if isinstance(value, int) else _scalar(value)}" for key, value in content.items()
    )
    return _line(f"- {{{body}}}", why)


def _line(text: str, why: str) -> str:
    return f"{text}  # {safe_text(why)}"


def _scalar(text: str) -> str:
    """A text as YAML, with quotes where it needs them."""
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if is_plain else json.dumps(text)


def _shares(look: Look) -> str:
    total = len(look.values)
    shown = [f"{_short(value)} {_percent(count / total)}" for value, count in look.top[:_SHOWN]]
    return ", ".join(shown) + (", ..." if look.n_values > _SHOWN else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"{text[:30]}..."


def _percent(share: float) -> str:
    digits = (
        0 if share >= 0.1 else 1 if share >= 0.001 else min(-math.floor(math.log10(max(share, 1e-9))) - 2, 6)
    )
    return f"{100 * share:.{digits}f} %"
