from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.roles import Roles
from features.ulb import FEATURES, N_FEATURES
from transforms.columnar import SourceColumnsError, check_columns, to_transactions
from transforms.json_rows import row_dicts
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.rebatch import rebatch
from transforms.schema import ERROR_RECORDS, TRANSACTIONS

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
EARLIER = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)


def ulb(rows: int = 3, **columns: pa.Array | list) -> pa.RecordBatch:
    """Rows in the ULB layout: feature i of row r is r + i / 100; `columns` replace or add."""
    values: dict = {name: np.arange(rows) + i / 100 for i, name in enumerate(FEATURES)}
    return pa.RecordBatch.from_pydict(values | columns)


def features(row: int) -> list[float]:
    return np.float32([row + i / 100 for i in range(N_FEATURES)]).tolist()


class TestToTransactions:
    def test_named_columns(self):
        parsed = to_transactions(
            ulb(
                transaction_id=["a", "b", "c"],
                account_id=["x", None, "z"],
                event_time=pa.array([EARLIER, None, NOW], pa.timestamp("us", tz="UTC")),
                Class=[0, 1, 0],
            ),
            NOW,
        )
        assert parsed.transactions.schema == TRANSACTIONS
        assert parsed.transactions.to_pylist() == [
            dict(zip(TRANSACTIONS.names, (*row, None, None, None, None, None), strict=True))
            for row in (
                ("a", "x", EARLIER, False, features(0)),
                ("b", None, NOW, True, features(1)),
                ("c", "z", NOW, False, features(2)),
            )
        ]
        assert parsed.dead_letters.schema == ERROR_RECORDS
        assert parsed.dead_letters.num_rows == 0

    @pytest.mark.parametrize(
        "kind",
        [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), N_FEATURES)],
        ids=str,
    )
    def test_a_list_column(self, kind):
        batch = pa.RecordBatch.from_pydict({"features": pa.array([features(0), features(1)], kind)})
        assert to_transactions(batch, NOW).transactions.column("features").to_pylist() == [
            features(0),
            features(1),
        ]

    def test_a_slice_of_a_batch_gives_its_own_rows(self):
        whole = pa.RecordBatch.from_pydict(
            {"features": pa.array([features(i) for i in range(6)], TRANSACTIONS.field("features").type)}
        )
        for batch in (whole.slice(2, 3), ulb(6).slice(2, 3)):
            parsed = to_transactions(batch, NOW).transactions
            assert parsed.column("features").to_pylist() == [features(2), features(3), features(4)]

    def test_columns_are_found_by_role_and_without_case_as_in_sql(self):
        columns = {"TIME": [1.0], "timestamp": [EARLIER], "TX": [7], **{name: [0.5] for name in FEATURES[1:]}}
        batch = pa.RecordBatch.from_pydict(columns)
        rules = MessageRules(roles=Roles(transaction_id="tx", event_time="timestamp"))
        (row,) = to_transactions(batch, NOW, rules).transactions.to_pylist()
        assert (row["transaction_id"], row["event_time"], row["features"][0]) == ("7", EARLIER, 1.0)
        both = batch.append_column("Time", pa.array([2.0]))
        assert to_transactions(both, NOW).transactions.column("features").to_pylist()[0][0] == 2.0
        unclear = batch.append_column("time", pa.array([2.0]))
        with pytest.raises(SourceColumnsError, match="TIME and time differ in case alone, and none is Time"):
            check_columns(unclear.schema)
        with pytest.raises(SourceColumnsError, match="--id_column: there is no column nr; it has TIME"):
            check_columns(batch.schema, MessageRules(roles=Roles(transaction_id="nr")))

    @pytest.mark.parametrize(
        "given", [[None, [], None], ["a", "b", None], [1.0, 2.0, None], [{"a": 1}] * 3], ids=str
    )
    def test_features_that_are_no_list_count_as_absent_beside_named_ones(self, given):
        kind = pa.list_(pa.float64()) if given[1] == [] else None
        parsed = to_transactions(ulb(features=pa.array(given, kind)), NOW)
        assert parsed.transactions.column("features").to_pylist() == [features(i) for i in range(3)]

    def test_a_list_counts_before_named_features_row_by_row(self):
        lists = pa.array([features(9), None, [1.0] * 29], pa.list_(pa.float64()))
        parsed = to_transactions(ulb(features=lists), NOW)
        assert parsed.transactions.column("features").to_pylist() == [features(9), features(1)]
        assert parsed.dead_letters.column("errorMessage").to_pylist() == ["features: 29 values, not 30"]

    def test_a_derived_time_stays_marked(self):
        batch = ulb(event_time=[EARLIER, EARLIER, None], event_time_derived=[True, None, None])
        parsed = to_transactions(batch, NOW)
        assert parsed.transactions.column("event_time_derived").to_pylist() == [True, False, True]
        assert (parsed.ids_derived, parsed.times_defaulted) == (3, 1)

    def test_bytes_that_are_no_text_cost_their_row_and_are_no_id_when_replayed(self):
        ids = pa.array([b"t-1", b"\xff\x00", None])
        parsed = to_transactions(ulb(transaction_id=ids), NOW)
        assert parsed.transactions.num_rows == 2
        assert parsed.dead_letters.column("errorMessage").to_pylist() == [
            "transaction_id: not UTF-8 (invalid start byte at byte 0)"
        ]
        payloads = parsed.dead_letters.column("payloadBytes").to_pylist()
        assert parse_messages(MessageColumns(payloads), MessageRules(NOW)).transactions.num_rows == 0

    @pytest.mark.parametrize("kind", [pa.int32(), pa.float32(), pa.decimal128(25, 5)], ids=str)
    def test_any_number_type(self, kind):
        batch = ulb(Time=pa.array([1, 2, 3]).cast(kind), Amount=pa.array([1.5, 2.0, 0.25]))
        parsed = to_transactions(batch, NOW).transactions.column("features").to_pylist()
        assert [row[0] for row in parsed] == [1.0, 2.0, 3.0]
        assert [row[-1] for row in parsed] == [1.5, 2.0, 0.25]

    @pytest.mark.parametrize(
        ("values", "shown"),
        [
            ([1.0, None, 3.0], "V7 is null, not a finite float32"),
            ([1.0, float("nan"), 3.0], "V7 is nan, not a finite float32"),
            ([1.0, float("inf"), 3.0], "V7 is inf, not a finite float32"),
            ([1.0, -1e300, 3.0], "V7 is -1e+300, not a finite float32"),
        ],
    )
    def test_a_value_that_is_no_float32_costs_its_row_only(self, values, shown):
        parsed = to_transactions(ulb(V7=values, transaction_id=["a", "b", "c"], Class=[0, 0, 1]), NOW)
        assert parsed.transactions.column("transaction_id").to_pylist() == ["a", "c"]
        (letter,) = parsed.dead_letters.to_pylist()
        assert letter["errorMessage"] == f"features: {shown}"
        assert letter["stage"] == "parse"
        assert orjson.loads(letter["payloadBytes"])["transaction_id"] == "b"

    def test_lists_of_another_length_cost_their_row_only(self):
        rows = [features(0), None, features(1)[:29], [*features(2)[:29], None], features(3)]
        batch = pa.RecordBatch.from_pydict({"features": pa.array(rows, pa.list_(pa.float64()))})
        parsed = to_transactions(batch, NOW)
        assert parsed.transactions.column("features").to_pylist() == [features(0), features(3)]
        assert parsed.dead_letters.column("errorMessage").to_pylist() == [
            "features: null",
            "features: 29 values, not 30",
            "features: Amount is null, not a finite float32",
        ]

    def test_ids_of_a_wrong_length_cost_their_row_only(self):
        parsed = to_transactions(
            ulb(4, transaction_id=["a", "", "c" * 257, "d"], account_id=["x", "x", "x", ""]), NOW
        )
        assert parsed.transactions.column("transaction_id").to_pylist() == ["a"]
        assert parsed.dead_letters.column("errorMessage").to_pylist() == [
            "transaction_id: 0 characters, not 1 to 256",
            "transaction_id: 257 characters, not 1 to 256",
            "account_id: 0 characters, not 1 to 256",
        ]

    def test_integer_ids_become_text(self):
        parsed = to_transactions(ulb(transaction_id=[7, 8, 9], account_id=pa.array([1, None, 3])), NOW)
        assert parsed.transactions.column("transaction_id").to_pylist() == ["7", "8", "9"]
        assert parsed.transactions.column("account_id").to_pylist() == ["1", None, "3"]

    @pytest.mark.parametrize(
        "times",
        [
            pa.array([EARLIER] * 3, pa.timestamp("ns", tz="UTC")),
            pa.array([EARLIER.replace(tzinfo=None)] * 3, pa.timestamp("us")),
            pa.array([EARLIER] * 3, pa.timestamp("s", tz="Europe/Brussels")),
        ],
        ids=lambda array: str(array.type),
    )
    def test_times_of_any_unit_and_zone(self, times):
        parsed = to_transactions(ulb(event_time=times), NOW).transactions
        assert parsed.column("event_time").to_pylist() == [EARLIER] * 3

    def test_times_that_a_message_may_not_have_are_dead_letters_here_too(self):
        micros = [0, 1_772_366_400_000_000, 1_772_452_800_000_001, 2**62, None]  # NOW, a day later, and more
        times = pa.array(micros, pa.timestamp("us", tz="UTC"))
        batch = ulb(5, event_time=times, transaction_id=list("abcde"))
        parsed = to_transactions(batch, NOW)
        assert parsed.transactions.column("transaction_id").to_pylist() == ["b", "e"]
        end = "its publication or the launch of the job"
        late = f"is more than --max_event_lead_seconds=86400 after {end}"
        assert parsed.dead_letters.column("errorMessage").to_pylist() == [
            f"event_time: 1970-01-01T00:00:00+00:00 is more than --max_event_age_days=3650 before {end}",
            f"event_time: 2026-03-02T12:00:00.000001+00:00 {late}",
            f"event_time: {2**62} microseconds after 1970 {late}",
        ]
        payloads = map(orjson.loads, parsed.dead_letters.column("payloadBytes").to_pylist())
        assert [row["event_time"] for row in payloads] == [
            *(
                "1970-01-01T00:00:00+00:00",
                "2026-03-02T12:00:00.000001+00:00",
                f"{2**62} microseconds after 1970",
            )
        ]
        wide = MessageRules(max_lead=dt.timedelta(days=2), max_age=dt.timedelta(days=36_500))
        parsed = to_transactions(batch, NOW, wide)
        assert parsed.transactions.column("transaction_id").to_pylist() == ["a", "b", "c", "e"]

    def test_nanoseconds_are_cut_and_do_not_spoil_a_dead_letter(self):
        times = pa.array([1_700_000_000_123_456_789] * 3, pa.timestamp("ns", tz="UTC"))
        parsed = to_transactions(ulb(event_time=times, V1=[1.0, 2.0, None]), NOW)
        micros = parsed.transactions.column("event_time").cast(pa.int64()).to_pylist()
        assert micros == [1_700_000_000_123_456] * 2
        (payload,) = parsed.dead_letters.column("payloadBytes").to_pylist()
        assert orjson.loads(payload)["event_time"] == "2023-11-14T22:13:20.123456+00:00"

    @pytest.mark.parametrize(
        "columns",
        [
            {},
            {"Class": [0, 1, 0], "account_id": [1, 2, 3], "event_time": [NOW] * 3},
            {"V2": [None] * 3, "event_time": [None] * 3, "transaction_id": [None] * 3},
            {"Amount": pa.array([1, 2, 3], pa.decimal128(9, 2))},
            {"account_id": pa.array(["a", "a", "b"]).dictionary_encode()},
            {"notes": pa.array([1, 2, 3]).dictionary_encode(), "nested": [{"V1": "x"}] * 3},
        ],
        ids=" ".join,
    )
    def test_what_it_takes_passes_the_check_of_columns_alone(self, columns):
        assert to_transactions(ulb(**columns), NOW)
        check_columns(ulb(**columns).schema)
        lists = pa.schema([("features", pa.list_(pa.float32())), ("V1", pa.string())])
        check_columns(lists)

    def test_a_column_that_is_there_twice_is_named(self):
        twice = pa.schema([*ulb().schema, pa.field("V2", pa.float64())])
        with pytest.raises(SourceColumnsError, match="Column 'V2' is there 2 times"):
            check_columns(twice)

    def test_missing_feature_columns_are_named(self):
        batch = ulb().drop_columns(["V3", "Amount"])
        with pytest.raises(
            SourceColumnsError, match=r"no column V3, Amount\. It needs the 30 feature columns"
        ):
            to_transactions(batch, NOW)
        with pytest.raises(SourceColumnsError, match=r"no column V3, Amount\..* it has Time, V1, V2, V4"):
            check_columns(batch.schema)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"V2": [True, False, True]}, "Column 'V2' is bool, not a number"),
            ({"features": [[True] * 30] * 3}, "Column 'features' is bool, not a number"),
            (
                {"event_time": [dt.date(2026, 3, 1)] * 3},
                "Column 'event_time' is date32[day], not a timestamp",
            ),
            ({"event_time_derived": [[True]] * 3}, "Column 'event_time_derived' is list<item: bool>"),
            ({"transaction_id": [1.5, 2.5, 3.5]}, "Column 'transaction_id' is double"),
        ],
    )
    def test_a_column_of_an_impossible_type_is_named(self, columns, message):
        with pytest.raises(SourceColumnsError, match=re.escape(message)):
            to_transactions(ulb(**columns), NOW)
        with pytest.raises(SourceColumnsError, match=re.escape(message)):
            check_columns(ulb(**columns).schema)

    def test_no_rows(self):
        parsed = to_transactions(ulb(0), NOW)
        assert (parsed.transactions.num_rows, parsed.dead_letters.num_rows) == (0, 0)


class TestDerivedIds:
    def ids(self, batch: pa.RecordBatch, default: dt.datetime = NOW) -> list[str]:
        return to_transactions(batch, default).transactions.column("transaction_id").to_pylist()

    def test_they_are_the_same_whenever_and_in_whatever_batch_a_row_is_read(self):
        whole = self.ids(ulb(4))
        assert whole == [
            "68a2415ffc8956a95b38a597381feef4",
            "9939b5aa37f7ec69dd746499b3b63b2f",
            "31df3ce1ac3bf982da5f714eceb7c7dc",
            "867720fc69f9a72fc898cce6a520cb65",
        ]
        assert self.ids(ulb(4).slice(2), EARLIER) == whole[2:]
        wide = ulb(4)
        narrow = wide.set_column(0, "Time", wide.column("Time").cast(pa.float32()))
        assert self.ids(narrow) == whole

    def test_every_part_of_the_content_counts(self):
        times = pa.array([EARLIER] * 3, pa.timestamp("us", tz="UTC"))
        variants = [
            ulb(),
            ulb(V28=[0.0, 0.5, 1.0]),
            ulb(account_id=["x", "y", "z"]),
            ulb(event_time=times),
            ulb(event_time=times, account_id=["x", "y", "z"]),
        ]
        parsed = [transaction_id for batch in variants for transaction_id in self.ids(batch)]
        assert len(set(parsed)) == 15

    @pytest.mark.parametrize("kind", ["columns", "list"])
    def test_rows_that_differ_beyond_float32_get_different_ids(self, kind):
        amounts = [1234.56, np.nextafter(1234.56, 2000), 123456.0]
        assert len(set(np.float32(amounts).tolist())) == 2
        batch = ulb(Amount=amounts)
        if kind == "list":
            rows = [[float(value) for value in row.values()] for row in batch.select(FEATURES).to_pylist()]
            batch = pa.RecordBatch.from_pydict({"features": rows})
        assert len(set(self.ids(batch))) == 3

    def test_only_missing_ones_are_derived(self):
        assert self.ids(ulb(transaction_id=["a", None, "c"])) == ["a", self.ids(ulb())[1], "c"]

    def test_equal_rows_get_equal_ids(self):
        batch = ulb(2)
        first, second = self.ids(pa.concat_batches([batch, batch]).take(pa.array([0, 2])))
        assert first == second


FLOATS = st.floats(width=64) | st.none()


@given(
    st.lists(
        st.tuples(st.integers(0, N_FEATURES - 1), FLOATS, st.sampled_from(["id", "", None])), max_size=20
    )
)
@settings(deadline=None, max_examples=50)
def test_every_row_is_a_transaction_or_a_dead_letter_that_the_parser_rejects_too(rows):
    columns = {name: [0.5] * len(rows) for name in FEATURES}
    for r, (feature, value, _) in enumerate(rows):
        columns[FEATURES[feature]][r] = value
    kinds = {name: pa.array(values, pa.float64()) for name, values in columns.items()}
    ids = pa.array([transaction_id for _, _, transaction_id in rows], pa.string())
    parsed = to_transactions(pa.RecordBatch.from_pydict(kinds | {"transaction_id": ids}), NOW)
    assert parsed.transactions.num_rows + parsed.dead_letters.num_rows == len(rows)
    matrix = np.asarray(parsed.transactions.column("features").flatten())
    assert np.isfinite(matrix).all()
    payloads = parsed.dead_letters.column("payloadBytes").to_pylist()
    parsed = parse_messages(MessageColumns(payloads), MessageRules(default_time=NOW))
    assert parsed.transactions.num_rows == 0


@given(
    lengths=st.lists(st.integers(0, 20), max_size=12),
    rows=st.integers(1, 15),
)
@settings(deadline=None)
def test_rebatching_keeps_rows_and_order(lengths, rows):
    numbers = iter(range(1_000))
    batches = [
        pa.RecordBatch.from_pydict({"n": pa.array([next(numbers) for _ in range(length)], pa.int64())})
        for length in lengths
    ]
    parsed = list(rebatch(batches, rows))
    assert [n for batch in parsed for n in batch.column("n").to_pylist()] == list(range(sum(lengths)))
    assert all(batch.num_rows == rows for batch in parsed[:-1])
    assert all(batch.num_rows > 0 for batch in parsed)


def test_rebatching_needs_a_length():
    with pytest.raises(ValueError, match="rows: expected at least 1"):
        list(rebatch([], 0))


def test_rows_as_json_keep_what_json_cannot_say():
    batch = pa.RecordBatch.from_pylist(
        [{"b": b"\xff\x00", "f": float("inf"), "t": NOW, "s": [{"x": float("nan")}], "n": None, "i": 3}]
    )
    assert row_dicts(batch) == [
        {
            "b": "/wA=",
            "f": "Infinity",
            "t": "2026-03-01T12:00:00+00:00",
            "s": [{"x": "NaN"}],
            "n": None,
            "i": 3,
        }
    ]


REAL_DATA = Path(__file__).parents[3] / "shared" / "data" / "ulb_transactions.parquet"


@pytest.mark.skipif(not REAL_DATA.exists(), reason=f"no real transactions at {REAL_DATA}")
def test_real_transactions_are_all_taken_and_their_derived_ids_are_distinct():
    table = pq.read_table(REAL_DATA)
    parsed = [to_transactions(batch, NOW) for batch in rebatch(table.to_batches())]
    assert sum(part.dead_letters.num_rows for part in parsed) == 0
    transactions = pa.Table.from_batches([part.transactions for part in parsed])
    assert transactions.num_rows == table.num_rows
    assert len(transactions["transaction_id"].unique()) == table.num_rows
    amounts = np.asarray(transactions["features"].combine_chunks().flatten()).reshape(-1, N_FEATURES)[:, -1]
    assert amounts.tolist() == table["Amount"].to_numpy().astype(np.float32).tolist()
