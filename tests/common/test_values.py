"""Readers of single values."""

from __future__ import annotations

import argparse
import datetime as dt

import pytest

from common.values import SHARE, at_least, duration, moment

NOW = dt.datetime(2026, 3, 8, 12, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", NOW - dt.timedelta(minutes=90)),
        ("24h", NOW - dt.timedelta(hours=24)),
        ("7d", NOW - dt.timedelta(days=7)),
        ("2026-03-01T12:00:00+02:00", dt.datetime(2026, 3, 1, 10, tzinfo=dt.UTC)),
        ("2026-03-01", dt.datetime(2026, 3, 1, tzinfo=dt.UTC)),
    ],
)
def test_a_moment_is_an_age_or_a_time(text, expected):
    assert moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["yesterday'; DROP TABLE x", "", "7", "7w", "-1d"])
def test_anything_else_is_no_moment(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected an age such as 90m"):
        moment(text, NOW)


@pytest.mark.parametrize(
    "text", ["9999999999d", "99999999999999999999m", "800000d", "0001-01-01T00:00:00+14:00"]
)
def test_a_moment_outside_of_the_calendar_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a "):
        moment(text, NOW)


def test_durations():
    assert duration("250ms") == dt.timedelta(milliseconds=250)
    assert duration("1.5h") == dt.timedelta(minutes=90)
    with pytest.raises(argparse.ArgumentTypeError, match="expected a duration such as 250ms"):
        duration("1 fortnight")


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (at_least(1), "0", "expected a whole number of at least 1, got '0'"),
        (at_least(1, 5), "6", "expected a whole number from 1 to 5, got '6'"),
        (at_least(1), "1.5", "expected a whole number of at least 1, got '1.5'"),
        (SHARE, "1.01", "expected a number from 0 to 1, got '1.01'"),
        (SHARE, "nan", "expected a number from 0 to 1, got 'nan'"),
    ],
)
def test_numbers_outside_of_their_bounds_are_refused(reader, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        reader(text)
    assert str(refused.value) == message


def test_numbers_inside_of_their_bounds():
    assert (at_least(1, 5)("5"), at_least(0)("0"), SHARE("1")) == (5, 0, 1)
