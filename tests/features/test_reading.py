"""A feature spec in YAML, and what is said of a mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.declaration import Feature, FeatureSpec
from features.default import ULB
from features.reading import MAX_BYTES, SpecFileError, parse, read
from features.roles import Roles

CARDS = """\
transaction_id: id
account: card.account
event_time: {from: time, format: milliseconds}
amount: amount
label: is_fraud
pass_through: [merchant.name, channel]
features:
- {name: amount, kind: number, scale: log}
- {name: risk, kind: number, missing: median, use: reconstruction}
- name: country
  kind: category
  from: merchant.country
  keep: 30
  missing: own
- {name: present, kind: boolean, missing: false}
- {name: hour, kind: time_of_day, timezone: Europe/Berlin}
"""


def test_every_key_is_read():
    assert parse(CARDS) == FeatureSpec(
        (
            Feature("amount", "number", "amount", scale="log"),
            Feature("risk", "number", "risk", missing="median", use="reconstruction"),
            Feature("country", "category", "merchant.country", keep=30, missing="own"),
            Feature("present", "boolean", "present", missing=0.0),
            Feature("hour", "time_of_day", "time", timezone="Europe/Berlin"),
        ),
        Roles(
            "id", "card.account", "time", "milliseconds", "amount", "is_fraud", ("merchant.name", "channel")
        ),
    )


def test_the_default_spec_is_one_that_a_user_may_write():
    assert FeatureSpec.from_json(ULB.to_json()) == ULB
    assert ULB.is_numeric
    assert ULB.inputs == ULB.fields == ULB.names
    assert [name for name, is_scored in zip(ULB.names, ULB.is_scored, strict=True) if not is_scored] == [
        "Time"
    ]


def test_no_and_a_date_are_texts():
    spec = parse(
        "amount: no\nfeatures:\n- {name: on, kind: number}\n- {name: x, from: 2026-01-01, kind: number}"
    )
    assert spec.roles.amount == "no"
    assert spec.fields == ("on", "2026-01-01")


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("keep: 30", "keep: 0", 13, "features[2].keep: expected a number from 1 to 100000, got 0"),
        (
            "keep: 30",
            "kep: 30",
            13,
            "features[2].kep: expected one of the keys: name, kind, use, by, from, half_life,",
        ),
        ("kind: boolean", "kind: bool", 15, "features[3].kind: expected one of number, boolean, category,"),
        ("scale: log", "scale: ln", 8, "features[0].scale: expected one of linear, log, got 'ln'"),
        (
            "scale: log",
            "keep: 3",
            8,
            "features[0].keep: expected one of the keys of kind number: name, kind,",
        ),
        ("missing: own", "missing: median", 14, "features[2].missing: expected reject, own, got 'median'"),
        (
            "missing: median",
            "missing: 1e+99",
            9,
            "features[1].missing: expected reject, median or a number, got",
        ),
        ("name: risk, ", "", 9, "features[1]: expected a name, got {'kind': 'number'"),
        ("name: risk", "name: amount", 9, "features[1].name: the name 'amount' is also that of features[0]"),
        ("name: risk", "name: 'a,b'", 9, "features[1].name: expected a name of up to 100 letters"),
        ("name: risk", "name: is_fraud", 9, "features[1].name: 'is_fraud' is the label, which tells nothing"),
        (
            "name: present",
            "name: hour_sin",
            16,
            "features[4].name: the input 'hour_sin' is also that of features[3]",
        ),
        ("Europe/Berlin", "Berlin", 16, "features[4].timezone: expected a time zone, such as Europe/Berlin"),
        (
            "milliseconds",
            "ms",
            3,
            "event_time.format: expected one of any, rfc3339, seconds, milliseconds, or a pattern such as "
            "%d.%m.%Y %H:%M, got 'ms'",
        ),
        (
            "milliseconds",
            '"%H:%M"',
            3,
            "event_time.format: expected a pattern with day, month and year, such as %d.%m.%Y %H:%M, got "
            "'%H:%M'",
        ),
        ("milliseconds", '"%d.%m.%Q"', 3, "event_time.format: expected a pattern with day, month and year"),
        ("account: card.account", "account: card.", 2, "account: expected the name of a field, such as"),
        ("account: card.account", "account: card..id", 2, "account: expected the name of a field, such as"),
        (
            "account: card.account",
            "acount: x",
            2,
            "acount: expected one of the keys: transaction_id, account,",
        ),
        ("amount: amount", "amount: merchant", 10, "'merchant.country' lies within the field 'merchant'"),
        ("[merchant.name, channel]", "[a, a]", 6, "pass_through[1]: 'a' is there twice: remove one"),
        ("[merchant.name, channel]", "a", 6, "pass_through: expected a list of fields, got 'a'"),
        ("label: is_fraud", "amount: other", 5, "the key 'amount' is there twice: remove one"),
        ("label: is_fraud", "label: [", 7, "expected "),
        ("label: is_fraud", "label: *other", 5, "expected a value, got an alias"),
    ],
)
def test_a_mistake_is_refused_with_line_key_and_what_to_write(old, new, line, reason):
    assert old in CARDS
    with pytest.raises(SpecFileError) as refused:
        parse(CARDS.replace(old, new, 1))
    text = str(refused.value)
    assert text.startswith(f"features.yaml, line {line}: ")
    assert reason in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "line 1: expected keys with values (transaction_id, account,"),
        ("- a", "line 1: expected keys with values (transaction_id"),
        ("amount: x", "line 1: features: expected a list of features, got nothing"),
        ("features: []", "line 1: features: expected a list of features, got []"),
        ("features: [1]", "line 1: features[0]: expected keys with values (name, kind, use, by, from,"),
        (
            "features:\n- {name: a, kind: number, use: reconstruction}",
            "line 1: features: no feature is used in the",
        ),
        (
            "features:\n- {name: t, kind: number}\nevent_time: t",
            "line 2: features[0].kind: 't' is the event time",
        ),
        (
            "features:\n- {name: a, kind: number}\n- {name: b, from: a, kind: category}",
            "line 3: features[1].kind: expected the kind of the other feature of the field 'a' (number)",
        ),
        ("[" * 10_000, "expected YAML"),
        (b"\xff\xfe\xff", "expected YAML"),
    ],
)
def test_what_is_no_spec_is_refused(content, reason):
    with pytest.raises(SpecFileError, match=r"features\.yaml") as refused:
        parse(content)
    assert reason in str(refused.value)


@given(st.binary(max_size=30) | st.text(max_size=30))
def test_any_text_is_a_spec_or_refused(content):
    with pytest.raises(SpecFileError):
        parse(content)


def test_a_file_that_is_not_there_or_too_long_is_named(tmp_path):
    with pytest.raises(SpecFileError, match=r"none.yaml: expected a feature spec .* anomaly features infer"):
        read(tmp_path / "none.yaml")
    path = tmp_path / "features.yaml"
    path.write_text(CARDS + "#" * MAX_BYTES)
    with pytest.raises(SpecFileError, match="at most 1,048,576 bytes"):
        read(path)
    path.write_text(CARDS, encoding="utf-8")
    assert read(path) == parse(CARDS)
