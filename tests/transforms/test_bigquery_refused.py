from __future__ import annotations

import pytest
from google.cloud.bigquery_storage_v1 import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.clients import BigQueryEndpoints
from common.retry import Patience
from tests.transforms.bigquery_cases import SCHEMA, TABLE, batch, ids, refused
from tests.transforms.bigquery_server import Fault, ScriptedBigQuery
from transforms.bigquery.answers import AppendOptions, TransientAppendError
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.rows import SchemaMismatchError
from transforms.bigquery.streams import PendingStream

pytest_plugins = ("tests.transforms.bigquery_fixtures",)

TRANSIENT = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"]
FITTING = [
    types.TableFieldSchema(name="ID", type_="STRING", mode="REQUIRED"),
    types.TableFieldSchema(name="values", type_="DOUBLE", mode="REPEATED"),
    types.TableFieldSchema(name="more", type_="JSON", mode="NULLABLE"),
]


class TestRefusedRows:
    @pytest.fixture(params=["default", "pending"])
    def either(self, request, appender, pending) -> Appender:
        return appender if request.param == "default" else pending

    @pytest.fixture(autouse=True)
    def _bad_rows(self, server):
        server.refuse = lambda row: f"{row['id']} is bad" if row["id"].startswith("bad") else None

    def test_a_bad_row_costs_its_neighbours_nothing(self, server, either):
        result = either.append([batch("a", "bad1", "b", "c", "d", "bad2", "bad3", "bad4", "e")])
        assert sorted(ids(server.streams[either.stream].rows)) == ["a", "b", "c", "d", "e"]
        assert sorted(refused(result)) == [(f"bad{i}", f"bad{i} is bad") for i in range(1, 5)]
        assert (result.rows, result.retries) == (5, 0)

    def test_rows_that_the_answer_has_no_room_to_name_are_found_by_sending_again(self, server, new_appender):
        server.max_row_errors = 1
        appender = new_appender()
        result = appender.append([batch("bad1", "a", "bad2", "bad3")])
        assert ids(server.visible) == ["a"]
        assert refused(result) == [("bad1", "bad1 is bad"), ("bad2", "bad2 is bad"), ("bad3", "bad3 is bad")]
        assert result.calls == 4

    def test_rows_that_the_service_does_not_name_are_found_by_halves(self, server, new_appender):
        server.name_rows = False
        appender = new_appender()
        good = [f"good{i}" for i in range(15)]
        result = appender.append([batch(*good[:7], "bad", *good[7:])])
        assert sorted(ids(server.visible)) == sorted(good)
        assert refused(result) == [("bad", "bad is bad")]
        assert result.calls == 9  # 16 rows, four halvings of two requests each

    @pytest.mark.parametrize("table", [FITTING, None], ids=["the table fits", "no description"])
    @pytest.mark.parametrize("names", [["bad0"], ["bad1", "bad0", "bad2"], ["a", "bad0"], ["bad0", "a"]])
    def test_the_outcome_of_a_row_does_not_depend_on_what_came_before_it_or_beside_it(
        self, server, either, table, names
    ):
        server.name_rows, server.table = False, table
        bad = sorted((name, f"{name} is bad") for name in names if name.startswith("bad"))
        assert sorted(refused(either.append([batch(*names)]))) == bad
        either.append([batch("good")])
        assert sorted(refused(either.append([batch(*names)]))) == bad
        assert ids(server.streams[either.stream].rows).count("a") == 2 * names.count("a")

    @pytest.mark.parametrize(
        ("table", "reason"),
        [
            (FITTING[:1], "column values: the table does not have it"),
            (
                [FITTING[0], types.TableFieldSchema(name="values", type_="STRING", mode="REPEATED")],
                "column values: the table has ARRAY of STRING, the rows have ARRAY of FLOAT64",
            ),
            (
                [FITTING[0], types.TableFieldSchema(name="values", type_="DOUBLE")],
                "column values: the table has DOUBLE, the rows have ARRAY of FLOAT64",
            ),
            (
                [*FITTING, types.TableFieldSchema(name="day", type_="DATE", mode="REQUIRED")],
                "column day: the table requires it, the rows do not have it",
            ),
        ],
    )
    @pytest.mark.parametrize("history", [0, 1], ids=["fresh", "after a success"])
    def test_a_table_that_takes_no_such_row_is_an_error_that_names_the_column(
        self, server, either, table, reason, history
    ):
        either.append([batch("good")] * history)
        server.name_rows, server.table = False, table
        server.refuse = lambda row: "wrong"
        before = len(server.requests)
        with pytest.raises(SchemaMismatchError, match=f"INVALID_ARGUMENT: wrong: {reason}"):
            either.append([batch("1"), batch("2")])
        assert len(server.requests) == before + 1

    def test_the_table_is_asked_for_once_an_append_and_not_where_rows_are_named(self, server, either):
        server.table = FITTING
        either.append([batch("bad1", "a")])
        assert server.descriptions == 0
        server.name_rows = False
        either.append([batch("bad1", "a", "bad2", "b", "bad3")])
        assert server.descriptions == 1

    def test_all_rows_refused_is_no_error_when_the_service_names_them(self, server, either):
        result = either.append([batch("bad1", "bad2", "bad3")])
        assert result.rows == 0
        assert len(refused(result)) == 3

    def test_an_error_after_a_refused_row_shifts_no_offset(self, server, pending):
        server.script = {4: Fault("UNAVAILABLE", in_band=False), 6: Fault("INTERNAL", stored=True)}
        names = ["a", "bad1", "b", "c", "bad2", "d", "e", "f"]
        result = pending.append([batch(*names)])
        assert ids(server.streams[pending.stream].rows) == ["a", "b", "c", "d", "e", "f"]
        assert [name for name, _ in refused(result)] == ["bad1", "bad2"]


FAULTS = st.builds(
    Fault, code=st.sampled_from(TRANSIENT), in_band=st.booleans(), stored=st.booleans(), silent=st.just(False)
)


@given(
    good=st.lists(st.booleans(), min_size=1, max_size=25),
    script=st.dictionaries(st.integers(0, 25), FAULTS, max_size=6),
    name_rows=st.booleans(),
    window=st.integers(1, 4),
    rows=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_a_pending_stream_has_every_good_row_once_and_in_order(
    good, script, name_rows, window, rows
):
    names = [f"{'good' if ok else 'bad'}{i}" for i, ok in enumerate(good)]
    with ScriptedBigQuery(TABLE) as server:
        server.script = script
        server.name_rows = name_rows
        server.refuse = lambda row: "bad" if row["id"].startswith("bad") else None
        channel = WriteChannel(BigQueryEndpoints(storage=server.address).write_client)
        patience = Patience(first=0, tries=8)
        options = AppendOptions(
            max_request_rows=rows, window=window, patience=patience, quota_patience=patience
        )
        stream = PendingStream(channel, TABLE, SCHEMA, options)
        try:
            result = stream.append([batch(*names)])
            finished = stream.finish()
        except TransientAppendError:
            return  # the bundle is run again, on a new stream
        finally:
            stream.close()
            channel.close()
        stored = ids(server.streams[finished.name].rows) if finished else []
    assert stored == [n for n in names if n.startswith("good")]
    assert [n for n, _ in refused(result)] == [n for n in names if n.startswith("bad")]
    assert result.rows == len(stored)
