"""The waits of Patience, and its end."""

import pytest

from common.retry import Patience


def failing(times, errors):
    """A function that fails so many times and then answers."""

    def call():
        if len(errors) < times:
            errors.append(ConnectionError("gone"))
            raise errors[-1]
        return "answer"

    return call


def test_the_waits_between_tries_double_to_the_longest():
    waits, errors = [], []
    patience = Patience(seconds=1e9, first=1.0, longest=5.0, steady=1.0)
    answer = patience.call(
        failing(5, errors), lambda error: isinstance(error, ConnectionError), sleep=waits.append
    )
    assert answer == "answer"
    assert waits == [1, 2, 4, 5, 5]


def test_the_lot_takes_away_what_is_not_steady():
    assert [Patience(first=8).wait(1, lambda lot=lot: lot) for lot in (0, 0.5, 1)] == [0, 4, 8]
    assert [Patience(first=8, steady=0.5).wait(1, lambda lot=lot: lot) for lot in (0, 0.5, 1)] == [4, 6, 8]


def test_the_last_error_is_raised_after_the_last_try():
    waits, errors = [], []
    with pytest.raises(ConnectionError) as raised:
        Patience(tries=3).call(failing(9, errors), lambda error: True, sleep=waits.append)
    assert raised.value is errors[2]
    assert len(waits) == 2
