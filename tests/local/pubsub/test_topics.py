"""Topics and subscriptions by Google's clients: the same of the embedded server and of gcloud's."""

import datetime as dt

import pytest
from google.api_core import exceptions

from tests.local.pubsub.channel import NO_SUBSCRIPTION, NOWHERE, ONCE, PROJECT

pytestmark = pytest.mark.integration


def test_topics_are_made_shown_listed_and_deleted(channel):
    publisher = channel.publisher
    assert publisher.get_topic(topic=channel.topic, **ONCE).name == channel.topic
    with pytest.raises(exceptions.AlreadyExists):
        publisher.create_topic(name=channel.topic, **ONCE)
    listed = [topic.name for topic in publisher.list_topics(project=PROJECT, **ONCE)]
    assert channel.topic in listed
    pages = publisher.list_topics(request={"project": PROJECT, "page_size": 1}, **ONCE).pages
    assert [page.topics[0].name for page in pages] == listed
    names = list(publisher.list_topic_subscriptions(topic=channel.topic, **ONCE))
    assert names == [channel.subscription]
    publisher.delete_topic(topic=channel.topic, **ONCE)
    with pytest.raises(exceptions.NotFound):
        publisher.get_topic(topic=channel.topic, **ONCE)
    with pytest.raises(exceptions.NotFound):
        channel.publish(b"x")


def test_subscriptions_are_made_shown_listed_changed_and_deleted(make):
    channel = make(labels={"a": "b"})
    subscriber, name = channel.subscriber, channel.subscription
    with pytest.raises(exceptions.AlreadyExists):
        subscriber.create_subscription(name=name, topic=channel.topic, **ONCE)
    shown = subscriber.get_subscription(subscription=name, **ONCE)
    assert (shown.topic, shown.ack_deadline_seconds, dict(shown.labels)) == (channel.topic, 10, {"a": "b"})
    assert shown.message_retention_duration == dt.timedelta(days=7)
    request = {
        "subscription": {"name": name, "ack_deadline_seconds": 33},
        "update_mask": {"paths": ["ack_deadline_seconds"]},
    }
    assert subscriber.update_subscription(request=request, **ONCE).ack_deadline_seconds == 33
    assert name in [found.name for found in subscriber.list_subscriptions(project=PROJECT, **ONCE)]
    subscriber.delete_subscription(subscription=name, **ONCE)
    with pytest.raises(exceptions.NotFound):
        subscriber.get_subscription(subscription=name, **ONCE)


def test_a_subscription_outlives_its_topic_and_is_not_of_a_new_one(channel):
    channel.publish(b"before")
    channel.publisher.delete_topic(topic=channel.topic, **ONCE)
    channel.publisher.create_topic(name=channel.topic, **ONCE)
    channel.publish(b"after")
    shown = channel.subscriber.get_subscription(subscription=channel.subscription, **ONCE)
    assert shown.topic == "_deleted-topic_"
    assert channel.left() == [b"before"]


NO_NAMES = ("xy", "1abc", "a b c", "goog-x", "x" * 256)


@pytest.mark.parametrize("name", ["topic", *(f"{PROJECT}/topics/{name}" for name in NO_NAMES)])
def test_a_name_that_breaks_a_rule_is_refused(name, channel):
    with pytest.raises(exceptions.InvalidArgument):
        channel.publisher.create_topic(name=name, **ONCE)
    with pytest.raises(exceptions.InvalidArgument):
        channel.subscriber.create_subscription(
            name=name.replace("/topics/", "/subscriptions/"), topic=channel.topic, **ONCE
        )


def test_what_does_not_exist_is_not_found(channel):
    publisher, subscriber = channel.publisher, channel.subscriber
    calls = [
        lambda: publisher.delete_topic(topic=NOWHERE, **ONCE),
        lambda: subscriber.create_subscription(name=NO_SUBSCRIPTION, topic=NOWHERE, **ONCE),
        lambda: subscriber.delete_subscription(subscription=NO_SUBSCRIPTION, **ONCE),
        lambda: subscriber.pull(subscription=NO_SUBSCRIPTION, max_messages=1, **ONCE),
        lambda: subscriber.acknowledge(subscription=NO_SUBSCRIPTION, ack_ids=["x"], **ONCE),
        lambda: subscriber.seek(request={"subscription": NO_SUBSCRIPTION, "time": dt.datetime.now()}, **ONCE),
        lambda: make_dead(channel, NOWHERE, 5),
    ]
    for call in calls:
        with pytest.raises(exceptions.NotFound):
            call()


def make_dead(channel, topic, attempts):
    policy = {"dead_letter_topic": topic, "max_delivery_attempts": attempts}
    request = {"name": f"{channel.subscription}-2", "topic": channel.topic, "dead_letter_policy": policy}
    return channel.subscriber.create_subscription(request=request, **ONCE)


def test_settings_out_of_bounds_are_refused(channel):
    name, create = f"{channel.subscription}-2", channel.subscriber.create_subscription
    for settings in (
        {"ack_deadline_seconds": 601},
        {"ack_deadline_seconds": -1},
        {"message_retention_duration": dt.timedelta(minutes=9)},
        {"message_retention_duration": dt.timedelta(days=32)},
    ):
        with pytest.raises(exceptions.InvalidArgument):
            create(request={"name": name, "topic": channel.topic, **settings}, **ONCE)
    for attempts in (4, 101):
        with pytest.raises(exceptions.BadRequest):  # Google's says OUT_OF_RANGE
            make_dead(channel, channel.topic, attempts)
    for paths in ([], ["nonsense"], ["topic"]):
        with pytest.raises(exceptions.InvalidArgument):
            channel.subscriber.update_subscription(
                subscription={"name": channel.subscription}, update_mask={"paths": paths}, **ONCE
            )
    with pytest.raises(exceptions.InvalidArgument):
        channel.subscriber.seek(request={"subscription": channel.subscription}, **ONCE)
