"""Card payments as messages and as tables: their form, their times, and what never shows in them."""

import csv
import datetime as dt
import json

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.limits import MAX_EVENT_AGE_DAYS, MAX_MESSAGE_BYTES
from model import data
from model.synthetic.cards import frauds
from model.synthetic.cards.generator import CardGenerator
from model.synthetic.cards.places import CATEGORIES, COUNTRIES
from publisher import malformed
from publisher.__main__ import main
from publisher.cards import CARD
from publisher.files import CsvFile, ParquetFile
from publisher.messages import MessageSource
from publisher.options import parse
from publisher.publish import publish
from publisher.pubsub import PubSubTopic
from publisher.ulb import ULB
from tests.publisher.servers import serve

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
FUTURE = "2090-01-01T00:00:00Z"
TOPIC = "projects/test-project/topics/payments"
TABLE = [
    *("transaction_id", "account_id", "event_time", "amount", "currency", "channel", "country"),
    *("merchant.id", "merchant.name", "merchant.category"),
]


class Merchant(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: str
    category: str


class Payment(msgspec.Struct, forbid_unknown_fields=True):
    """A message as the docs describe it; msgspec refuses other types, and a time without its offset."""

    transaction_id: str
    account_id: str
    event_time: dt.datetime
    amount: float
    currency: str
    channel: str
    country: str
    merchant: Merchant


decode = msgspec.json.Decoder(Payment).decode


def source(seed=2, accounts=100, fraud_share=0.05, **arguments):
    generator = CardGenerator(seed=seed, fraud_share=fraud_share, accounts=accounts, merchants=150)
    return MessageSource(generator, form=CARD, **{"start_time": START, **arguments})


def column(messages, name):
    return messages.about.column(name).to_pylist()


def test_a_message_has_exactly_these_fields():
    messages = source().take(2_000)
    documents = [json.loads(payload) for payload in messages.payloads]
    for name in TABLE:
        outer, _, inner = name.partition(".")
        values = [document[outer][inner] if inner else document[outer] for document in documents]
        expected = column(messages, name)
        if name == "event_time":
            values = [dt.datetime.fromisoformat(value) for value in values]
        assert values == expected, name
    assert list(documents[0]) == [*TABLE[:7], "merchant"]
    assert list(documents[0]["merchant"]) == ["id", "name", "category"]
    assert {document["currency"] for document in documents} == {"EUR"}
    assert any(not document["merchant"]["name"].isascii() for document in documents)
    assert 230 < np.mean([len(payload) for payload in messages.payloads]) < 320


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**40),
    st.integers(1, 1_500),
    st.floats(0, 0.5),
    st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2100, 1, 1)),
)
def test_every_message_is_json_with_a_time_in_bounds(seed, n, share, start):
    start = start.replace(tzinfo=dt.UTC)
    messages = source(seed=seed, fraud_share=share, start_time=start).take(n)
    assert len(messages) == n
    earliest = start - dt.timedelta(milliseconds=1)
    for payload, attributes in zip(messages.payloads, messages.attributes, strict=True):
        payment = decode(payload)
        assert earliest <= payment.event_time
        earliest = payment.event_time
        assert json.loads(payload)["event_time"] == attributes["event_time"]
        assert attributes["event_time"].endswith("Z")
        assert 0 < payment.amount <= frauds.MAX_AMOUNT
        assert payment.currency == "EUR"
        assert payment.country in {country.code for country in COUNTRIES}
        assert payment.merchant.category in {category.name for category in CATEGORIES}
        assert len(payload) < MAX_MESSAGE_BYTES
        payload.decode("utf-8")


def test_the_kind_is_an_attribute_and_not_in_the_message():
    messages = source().take(20_000)
    planted = [i for i, kind in enumerate(column(messages, "planted_kind")) if kind]
    assert {messages.attributes[i]["planted_kind"] for i in planted} == set(frauds.KINDS)
    assert sum("planted_kind" in attributes for attributes in messages.attributes) == len(planted)
    text = b"".join(messages.payloads)
    assert not any(name.encode() in text for name in ("planted", "fraud", "label", *frauds.KINDS))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 1_500), min_size=1, max_size=5))
def test_portions_do_not_matter(sizes):
    whole = source(malformed_share=0.1).take(sum(sizes))
    parted = source(malformed_share=0.1)
    parts = [parted.take(size) for size in sizes]
    assert whole.payloads == [payload for part in parts for payload in part.payloads]
    assert whole.attributes == [row for part in parts for row in part.attributes]
    tables = [pa.Table.from_batches(batches) for batches in ([whole.about], [part.about for part in parts])]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("name", CARD.malformed)
def test_no_malformed_message_is_a_payment(name):
    messages = source(malformed_share=1.0, malformed_kinds=[name]).take(60)
    assert column(messages, "malformed_kind") == [name] * 60
    kind = malformed.KINDS[name]
    for payload, identifier, attributes in zip(
        messages.payloads, column(messages, "transaction_id"), messages.attributes, strict=True
    ):
        assert not set(b"\r\n") & set(payload)
        assert (identifier is not None) == kind.has_id
        assert ("event_time" in attributes) == kind.has_time
        assert attributes["malformed_kind"] == name
        with pytest.raises((ValueError, RecursionError)):
            accept(payload)
        # An array with an object in it is an array of transactions, and becomes a dead letter for each.
        assert not (payload.startswith(b"[") and b"{" in payload)


def accept(payload):
    """Decodes a payment as strictly as a pipeline does, with the years that it takes."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise ValueError("too long")
    payment = decode(payload.decode("utf-8"))
    if not abs(payment.amount) < 3.4e38 or payment.event_time.tzinfo is None:
        raise ValueError("no float32, or no offset")
    if not START - dt.timedelta(days=MAX_EVENT_AGE_DAYS) < payment.event_time < START.replace(year=2030):
        raise ValueError("out of time")


def test_each_form_has_its_malformed_kinds():
    assert set(CARD.malformed) | set(ULB.malformed) == set(malformed.KINDS)
    assert {"no_amount", "flat_merchant"} == set(CARD.malformed) - set(ULB.malformed)
    with pytest.raises(ValueError, match="no kind missing_feature; there are not_json"):
        source(malformed_share=0.1, malformed_kinds=["missing_feature"])


class TestTables:
    def run(self, sink):
        with sink:
            summary = publish(source(malformed_share=0.02), sink, count=5_000)
        assert summary.left_out > 50
        return source(malformed_share=0.02).take(5_000).well_formed()

    def test_parquet(self, tmp_path):
        path = tmp_path / "t.parquet"
        good = self.run(ParquetFile(path, CARD))
        table = pq.read_table(path)
        assert table.column_names == TABLE
        assert table.to_pylist() == good.about.select(TABLE).to_pylist()

    def test_labelled(self, tmp_path):
        path = tmp_path / "t.parquet"
        good = self.run(ParquetFile(path, CARD, is_labelled=True))
        table = pq.read_table(path)
        assert table.column_names == [*TABLE, "is_fraud", "planted_kind"]
        assert table["planted_kind"].to_pylist() == column(good, "planted_kind")
        assert table["is_fraud"].to_pylist() == [
            int(kind is not None) for kind in column(good, "planted_kind")
        ]
        assert 100 < sum(table["is_fraud"].to_pylist()) < 400

    def test_csv(self, tmp_path):
        path = tmp_path / "t.csv"
        good = self.run(CsvFile(path, CARD, is_labelled=True))
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(good)
        for row, payload, kind in zip(rows, good.payloads, column(good, "planted_kind"), strict=True):
            document = json.loads(payload)
            assert row["merchant.name"] == document["merchant"]["name"]
            assert row["event_time"] == document["event_time"]
            assert float(row["amount"]) == document["amount"]
            assert row["planted_kind"] == (kind or "")
            assert row["is_fraud"] == ("1" if kind else "0")

    def test_no_rows_are_a_table_with_a_header(self, tmp_path):
        with CsvFile(tmp_path / "t.csv", CARD) as sink:
            publish(source(malformed_share=1.0), sink, count=10)
        assert (tmp_path / "t.csv").read_text() == ",".join(f'"{name}"' for name in TABLE) + "\n"

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_a_labelled_table_of_the_ulb_form_can_be_trained_on(self, tmp_path, kind):
        path = tmp_path / f"t.{kind}"
        main([f"--{kind}", str(path), "--count=3000", "--fraud_share=0.02", "--labelled", "--quiet"])
        dataset = data.load(str(path))
        assert dataset.features.shape == (3_000, 30)
        assert 20 < dataset.labels.sum() < 120


class TestTime:
    """The begin and the end of simulated time."""

    def made(self, *arguments):
        options = parse(["--spec", "card", *arguments])
        to_topic = bool(options.destination.topic)
        return options.content.source(to_topic, options.load.count, options.load.expected)

    def test_a_run_with_a_count_ends_before_today(self):
        now = dt.datetime.now(dt.UTC)
        for count, accounts in ((10, 300), (5_000, 300), (50_000, 300), (300, 1)):
            made = self.made("--jsonl=m", f"--count={count}", f"--accounts={accounts}")
            times = made.take(count).about["event_time"]
            assert len(times) == count
            last = times[-1].as_py()
            assert last < now
            noise = dt.timedelta(days=8 * count**0.5 / made.generator.per_day)
            assert now - last < dt.timedelta(days=3) + noise
            assert made.start_time.time() == dt.time()

    def test_a_run_with_a_duration_is_as_long_as_the_pattern_says(self):
        made = self.made(
            f"--topic={TOPIC}", "--duration=100", "--pattern=ramp", "--rate=0", "--peak_rate=100"
        )
        messages = parse(
            [f"--topic={TOPIC}", "--duration=100", "--pattern=ramp", "--rate=0", "--peak_rate=100"]
        )
        assert messages.load.expected == 60 * 100 / 2 + 40 * 100
        days = (dt.datetime.now(dt.UTC) - made.start_time).days
        assert days == pytest.approx(messages.load.expected / made.generator.per_day, abs=3)

    def test_a_run_without_an_end_has_a_year(self):
        assert (dt.datetime.now(dt.UTC) - self.made(f"--topic={TOPIC}").start_time).days == 365

    def test_more_than_ten_years_are_refused(self):
        with pytest.raises(ValueError, match=r"--accounts: expected more accounts for 1,000,000 payments"):
            self.made("--jsonl=m", "--count=1000000", "--accounts=5")

    def test_the_hours_are_those_of_the_start(self):
        made = self.made(
            "--jsonl=m", "--count=9", "--start_time=2026-01-01T20:00:00+05:30", "--fraud_share=0"
        )
        hours = [time.hour for time in column(made.take(20_000), "event_time")]
        assert np.mean([1 <= hour < 5 for hour in hours]) < 0.05

    def test_now_is_the_clock(self):
        before = dt.datetime.now(dt.UTC) - dt.timedelta(milliseconds=1)
        times = column(self.made(f"--topic={TOPIC}", "--event_time=now").take(50), "event_time")
        assert all(before <= time <= dt.datetime.now(dt.UTC) for time in times)

    def test_a_stream_to_a_topic_ends_at_the_present(self):
        """A pipeline rejects messages from the future."""
        start = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
        made = source(start_time=start, ends_at_present=True)
        per_day = made.generator.per_day
        with serve(lambda call, first: None) as service, PubSubTopic(TOPIC, client=service.client) as topic:
            summary = publish(made, topic)
        assert summary.stopped_by == "source"
        assert summary.confirmed == pytest.approx(3 * per_day, rel=0.2)
        last = dt.datetime.fromisoformat(summary.last_event_time)
        assert start < dt.datetime.fromisoformat(summary.first_event_time) < last < dt.datetime.now(dt.UTC)
        assert len(made.take(100)) == 0

    @pytest.mark.parametrize("spec", ["ulb", "card"])
    def test_nothing_of_the_future_goes_to_a_topic(self, spec):
        options = parse(
            [f"--spec={spec}", f"--topic={TOPIC}", "--event_time=simulated", f"--start_time={FUTURE}"]
        )
        assert len(options.content.source(True, None, None).take(100)) == 0
        assert len(options.content.source(False, None, None).take(100)) == 100

    def test_a_file_of_another_time_goes_on(self):
        made = self.made("--jsonl=m", "--count=9", f"--start_time={FUTURE}")
        assert len(made.take(3_000)) == 3_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cycle=10"], "--cycle: leave it out with --spec card"),
        (["--fraud_share=0.6"], "fraud_share: 0.6 is not between 0 and 0.5"),
        (["--fraud_kinds=stolen_card"], "no kind stolen_card; there are amount_spike"),
        (["--malformed_share=0.1", "--malformed_kinds=extra_feature"], "no kind extra_feature"),
        (["--merchants=3"], "merchants: 3 is less than"),
        (["--labelled"], "--labelled: expected --parquet or --csv; a message never holds its label"),
    ],
)
def test_wrong_options_are_named(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--spec=card", "--jsonl=m", "--count=5", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_same_options_write_the_same_file(tmp_path, capsys):
    for name in ("a", "b"):
        arguments = ["--spec=card", f"--jsonl={tmp_path / name}", "--count=2000", "--malformed_share=0.05"]
        assert main([*arguments, "--seed=5", "--start_time=2026-01-01T00:00:00Z"]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "event times     2026-01-01T00:" in capsys.readouterr().out
