"""Attributes of the message that replays a dead letter."""

import pytest

from operations.dead_letters import message, reason_to_keep
from tests.operations.test_replay import letter


def test_an_attribute_message_id_of_the_publisher_is_sent_again():
    attributes = {"message_id": "theirs", "goog_message_id": "17"}
    _, sent = message(letter(attributes=attributes))
    assert sent == {"message_id": "theirs", "original_message_id": "17", "dead_letter_attempt": "1"}


@pytest.mark.parametrize("own", [97, 98, 99, 100])
def test_a_message_may_have_as_many_attributes_as_pubsub_takes(own):
    full = letter(attributes={str(i): "x" for i in range(own)} | {"message_id": "17", "googclient_a": "b"})
    assert (reason_to_keep(full, 3) is None) == (own < 100)
    _, sent = message(full)
    assert ("original_message_id" in sent) == (own < 99)
    again = letter(
        attributes={str(i): "x" for i in range(99)} | {"dead_letter_attempt": "1", "message_id": "4"}
    )
    assert reason_to_keep(again, 3) is None
    assert len(message(again)[1]) == 100
