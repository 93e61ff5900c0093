"""The messages of the embedded Pub/Sub: subscriptions, leases, redelivery. Nothing here knows of RPCs.

A message is kept in its serialised form, once for all subscriptions of its topic. Message numbers rise with
every message, so a heap of them gives the oldest first, also after a redelivery.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.pubsub_v1 import types

from local.pubsub_rules import invalid_ack_ids

ReceivedMessage: Final[Any] = types.ReceivedMessage.pb()
_OVERHEAD_BYTES: Final = 400
"""Bytes of a message in memory in addition to its data, measured."""
ANSWER_BYTES: Final = 3_500_000
"""Most bytes of messages in one answer, unless one alone is larger. Clients of an emulator refuse 4 MiB."""


@dataclass(slots=True, eq=False)
class Message:
    """A published message: its number, serialised form, ordering key, and time in seconds since 1970."""

    number: int
    data: bytes
    key: str
    published: float

    @property
    def size(self) -> int:
        """The bytes of memory that the message takes in a subscription."""
        return len(self.data) + _OVERHEAD_BYTES


@dataclass(slots=True, eq=False)
class Delivery:
    """A message in one subscription.

    Attributes:
      message: The message.
      attempts: How often the message has been delivered.
      until: The end of the lease or of the back-off; 0 while the message waits to be delivered.
      leased: A reader has the message.
      acknowledged: Kept for a seek to an earlier time alone.
      reader: The stream that has the message.
    """

    message: Message
    attempts: int = 0
    until: float = 0.0
    leased: bool = False
    acknowledged: bool = False
    reader: Reader | None = None


@dataclass(slots=True, eq=False)
class Reader:
    """A streaming pull, and what it has not acknowledged.

    Attributes:
      lease_seconds: of the messages that the stream takes.
      most_messages: The most messages at a time; 0 is no limit.
      most_bytes: The most bytes at a time; 0 is no limit.
    """

    lease_seconds: int
    most_messages: int = 0
    most_bytes: int = 0
    messages: int = 0
    bytes: int = 0

    def room(self, most: int) -> int:
        """Returns the number of messages that the stream may take now, at most `most`."""
        if self.most_bytes > 0 and self.bytes >= self.most_bytes:
            return 0
        return min(most, self.most_messages - self.messages) if self.most_messages > 0 else most


@dataclass(eq=False)
class Queue:
    """The messages of one subscription.

    Attributes:
      settings: The Subscription, as protobuf.
      clock: Returns the seconds since 1970.
      bury: Takes a message that was delivered too often, with the number of its deliveries; returns False
        where it cannot.
    """

    settings: Any
    clock: Callable[[], float]
    bury: Callable[[Queue, Message, int], bool]
    bytes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _deliveries: OrderedDict[int, Delivery] = field(default_factory=OrderedDict)
    _ready: list[int] = field(default_factory=list)
    _timers: list[tuple[float, int]] = field(default_factory=list)
    _acknowledged: deque[int] = field(default_factory=deque)
    _out: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _blocked: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._ack_id = re.compile(re.escape(self.settings.name) + r":([0-9]{1,20})-([0-9]{1,9})")

    def wake(self) -> None:
        """Wakes everything that waits for a change of this queue."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Waits for a change or the next end of a lease, at most some seconds."""
        if self._timers:
            seconds = min(seconds, self._timers[0][0] - self.clock())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), max(seconds, 0.001))

    def put(self, messages: Sequence[Message]) -> None:
        """Adds messages."""
        for message in messages:
            self._deliveries[message.number] = Delivery(message)
            self.bytes += message.size
            heapq.heappush(self._ready, message.number)
        self.wake()

    def take(self, most: int, reader: Reader | None = None) -> list[Any]:
        """Leases the oldest messages that wait, as ReceivedMessage in protobuf.

        With message ordering, a key has messages out to one reader at a time.
        """
        now = self.clock()
        self._pass_time(now)
        lease = now + (reader.lease_seconds if reader else self.settings.ack_deadline_seconds)
        ordered, counted = self.settings.enable_message_ordering, self.settings.HasField("dead_letter_policy")
        taken: list[Any] = []
        keys: set[str] = set()
        size = 0
        while self._ready and len(taken) < most:
            number = self._ready[0]
            delivery = self._deliveries.get(number)
            if delivery is None or delivery.until or delivery.acknowledged:  # acknowledged after its lease
                heapq.heappop(self._ready)
                continue
            message = delivery.message
            if ordered and message.key in self._out and message.key not in keys:
                self._blocked[message.key].append(heapq.heappop(self._ready))
                continue
            size += len(message.data)
            if taken and size > ANSWER_BYTES:
                break
            heapq.heappop(self._ready)
            if ordered and message.key:
                self._out[message.key].add(number)
                keys.add(message.key)
            delivery.attempts += 1
            delivery.leased, delivery.reader = True, reader
            self._set_timer(delivery, lease)
            if reader is not None:
                reader.messages += 1
                reader.bytes += len(message.data)
            ack_id = f"{self.settings.name}:{number}-{delivery.attempts}"
            received = ReceivedMessage(ack_id=ack_id, delivery_attempt=delivery.attempts if counted else 0)
            received.message.MergeFromString(message.data)
            taken.append(received)
        return taken

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Settles messages; one whose lease has ended as well, unless it has been delivered anew.

        Raises:
          RefusalError: see `_find`.
        """
        for delivery in self._find(ack_ids).values():
            self._settle(delivery)
        self.wake()

    def modify_deadlines(self, ack_ids: Sequence[str], seconds: Sequence[int]) -> None:
        """Sets the end of leases to so many seconds from now; 0 returns a message.

        Raises:
          RefusalError: see `_find`.
        """
        now = self.clock()
        deliveries = self._find(ack_ids)
        for ack_id, lease in zip(ack_ids, seconds, strict=True):
            delivery = deliveries.get(ack_id)
            if delivery is None or not delivery.leased:
                continue
            if lease:
                self._set_timer(delivery, now + lease)
            else:
                self._give_back(delivery, now)
        self.wake()

    def seek(self, moment: float) -> None:
        """Acknowledges what was published before a moment, and delivers anew what was published since."""
        self._ready.clear()
        self._timers.clear()
        self._out.clear()
        self._blocked.clear()
        for delivery in list(self._deliveries.values()):
            self._release(delivery)
            delivery.acknowledged = False
            if delivery.message.published < moment:
                self._settle(delivery)
            else:
                heapq.heappush(self._ready, delivery.message.number)
        self.wake()

    def forget(self) -> int:
        """Drops the message that was acknowledged first of those kept for a seek; returns its bytes."""
        while self._acknowledged:
            delivery = self._deliveries.get(self._acknowledged.popleft())
            if delivery is not None and delivery.acknowledged:
                self._drop(delivery)
                return delivery.message.size
        return 0

    def _find(self, ack_ids: Sequence[str]) -> dict[str, Delivery]:
        """Finds the deliveries of acknowledgement ids, without those that have ended.

        Raises:
          RefusalError: an id is not of this subscription, or, with exactly-once delivery, has expired.
        """
        deliveries, invalid = {}, []
        exact = self.settings.enable_exactly_once_delivery
        for ack_id in ack_ids:
            match = self._ack_id.fullmatch(ack_id)
            delivery = self._deliveries.get(int(match[1])) if match else None
            if (
                match
                and delivery
                and delivery.attempts == int(match[2])
                and not delivery.acknowledged
                and (delivery.leased or not exact)
            ):
                deliveries[ack_id] = delivery
            elif exact or not match:
                invalid.append(ack_id)
        if invalid:
            raise invalid_ack_ids(invalid)
        return deliveries

    def _settle(self, delivery: Delivery) -> None:
        self._release(delivery)
        self._free(delivery.message)
        delivery.acknowledged = True
        settings = self.settings
        if settings.retain_acked_messages or settings.HasField("topic_message_retention_duration"):
            self._acknowledged.append(delivery.message.number)
        else:
            self._drop(delivery)

    def _drop(self, delivery: Delivery) -> None:
        if self._deliveries.pop(delivery.message.number, None):
            self.bytes -= delivery.message.size

    def _set_timer(self, delivery: Delivery, until: float) -> None:
        delivery.until = until
        heapq.heappush(self._timers, (until, delivery.message.number))

    def _release(self, delivery: Delivery) -> None:
        """Ends the lease."""
        if delivery.reader is not None:
            delivery.reader.messages -= 1
            delivery.reader.bytes -= len(delivery.message.data)
        delivery.until, delivery.leased, delivery.reader = 0.0, False, None

    def _free(self, message: Message) -> None:
        """Lets the waiting messages of an ordering key go on after the last one that was out."""
        out = self._out.get(message.key)
        if out is None:
            return
        out.discard(message.number)
        if not out:
            del self._out[message.key]
            for number in self._blocked.pop(message.key, ()):
                heapq.heappush(self._ready, number)

    def _give_back(self, delivery: Delivery, now: float) -> None:
        """Returns a message, and with message ordering the later ones of its key that are out."""
        policy = self.settings.retry_policy
        least, most = (
            value.ToMilliseconds() / 1000 for value in (policy.minimum_backoff, policy.maximum_backoff)
        )
        pause = min(max(most, least), least * 2 ** min(delivery.attempts - 1, 30))
        number = delivery.message.number
        out = self._out.get(delivery.message.key, ())
        for one in sorted(other for other in out if other >= number) or [number]:
            returned = self._deliveries[one]
            self._release(returned)
            dead = self.settings.dead_letter_policy.max_delivery_attempts
            if dead and returned.attempts >= dead and self.bury(self, returned.message, returned.attempts):
                self._settle(returned)
            elif pause:
                self._set_timer(returned, now + pause)
            else:
                self._requeue(returned)

    def _requeue(self, delivery: Delivery) -> None:
        delivery.until = 0.0
        heapq.heappush(self._ready, delivery.message.number)
        self._free(delivery.message)

    def _pass_time(self, now: float) -> None:
        """Ends leases and back-offs, and drops what is older than the retention."""
        while self._timers and self._timers[0][0] <= now:
            until, number = heapq.heappop(self._timers)
            delivery = self._deliveries.get(number)
            if delivery is None or delivery.until != until:  # settled, or the lease was made longer
                continue
            if delivery.leased:
                self._give_back(delivery, now)
            else:
                self._requeue(delivery)
        oldest = now - self.settings.message_retention_duration.ToMilliseconds() / 1000
        while self._deliveries:
            delivery = next(iter(self._deliveries.values()))
            if delivery.message.published >= oldest:
                return
            self._settle(delivery)
            self._drop(delivery)
