"""Row and column encoder give the same inputs, whatever the spec and the rows."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns import ColumnEncoder, ColumnError, field_columns
from features.declaration import FeatureSpec, SpecError, getter
from features.learning import learn
from features.learnt import Learnt, Rarity
from features.rows import RowEncoder
from tests.features.cases import rows, specs


def spec_of(*features: dict, **roles) -> FeatureSpec:
    return FeatureSpec.from_json({**roles, "features": list(features)})


@given(st.data())
def test_rows_and_columns_are_encoded_alike(data):
    spec = data.draw(specs())
    objects, table = data.draw(rows(spec, least=1))
    learnt = learn(spec, table.slice(0, data.draw(st.integers(0, len(objects)))))
    learnt = Learnt.from_json(learnt.to_json())
    by_columns = ColumnEncoder(spec, learnt).encode(field_columns(table, spec.fields))
    by_rows = RowEncoder(spec, learnt).encode(objects)
    assert by_columns.reasons == by_rows.reasons
    np.testing.assert_allclose(by_columns.inputs, by_rows.inputs, rtol=1e-6, atol=1e-6)
    refused = np.isin(np.arange(len(objects)), list(by_rows.reasons))
    assert np.isnan(by_rows.inputs[refused]).all()
    assert np.isfinite(by_rows.inputs[~refused]).all()
    getters = [getter(field) for field in spec.fields]
    as_lists = RowEncoder(spec, learnt).encode([[get(row) for get in getters] for row in objects])
    np.testing.assert_array_equal(as_lists.inputs, by_rows.inputs)


@given(st.data())
def test_a_spec_is_the_same_after_json(data):
    spec = data.draw(specs())
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert len(spec.inputs) == len(spec.groups) == len(spec.is_scored) == len(spec.is_log)


def test_a_column_within_structs_is_found_also_where_a_struct_is_null():
    inner = pa.StructArray.from_arrays([pa.array([1.0, 2.0])], names=["size"], mask=pa.array([False, True]))
    table = pa.table({"order": pa.StructArray.from_arrays([inner], names=["box"])})
    spec = spec_of({"name": "size", "from": "order.box.size", "kind": "number"})
    encoded = ColumnEncoder(spec).encode(field_columns(table, spec.fields))
    assert encoded.inputs[0, 0] == 1.0
    assert encoded.reasons == {1: "order.box.size: expected a finite number within float32, got null"}
    flat = pa.table({"order.box.size": [3.0]})
    assert ColumnEncoder(spec).encode(field_columns(flat, spec.fields)).inputs[0, 0] == 3.0


def test_a_missing_column_and_one_of_another_type_are_named():
    spec = spec_of({"name": "size", "from": "box.size", "kind": "number"})
    with pytest.raises(ColumnError, match=r"no column 'box.size', which .* it has amount, box"):
        field_columns(pa.table({"amount": [1], "box": [{"width": 1}]}), spec.fields)
    with pytest.raises(ColumnError, match=r"Column 'box.size' is bool, not a number"):
        ColumnEncoder(spec).encode({"box.size": pa.array([True])})


def test_unseen_values_and_those_that_are_not_kept_are_the_rarest():
    spec = spec_of({"name": "place", "kind": "category", "keep": 2, "missing": "own"})
    table = pa.table({"place": ["a"] * 90 + ["b"] * 5 + ["c"] * 2 + [None] * 3})
    learnt = learn(spec, table)
    assert learnt.categories["place"].values == ("a", "b")
    encoded = RowEncoder(spec, learnt).encode([["a"], ["b"], ["c"], ["zz"], [None]]).inputs[:, 0]
    assert encoded[0] < encoded[1] < encoded[2] == encoded[3]
    assert encoded[0] == pytest.approx(np.log(105 / 91))
    assert encoded[4] == pytest.approx(np.log(105 / 4))


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000)), st.integers(0, 50), st.integers(1, 5))
def test_no_value_is_rarer_than_an_unseen_one(counts, n_missing, keep):
    rarity = Rarity.of_counts(counts, n_missing, keep)
    assert all(one < rarity.other for one in rarity.rarities)
    assert rarity.missing <= max(
        (*rarity.rarities, rarity.other, np.log(sum(counts.values()) + len(counts) + 2))
    )


def test_the_hour_is_that_of_the_zone_and_winter_differs_from_summer():
    spec = spec_of(
        {"name": "hour", "kind": "time_of_day", "timezone": "Europe/Berlin"},
        {"name": "day", "kind": "day_of_week", "timezone": "Europe/Berlin"},
    )
    # Midnight of Monday in Berlin, in winter and in summer; 18 h is a quarter of the circle before midnight.
    times = ["2026-01-04T23:00:00Z", "2026-07-05T22:00:00Z", "2026-07-05T16:00:00Z"]
    encoded = RowEncoder(spec).encode([[time] for time in times]).inputs
    np.testing.assert_allclose(encoded[:2], [[0, 1, 0, 1]] * 2, atol=1e-6)
    np.testing.assert_allclose(encoded[2, :2], [-1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("instance", "reason"),
    [
        ([True, "x", 0], "amount: expected a finite number within float32, got true"),
        (["a", "x", 0], "amount: expected a finite number within float32, got a text"),
        ([10**400, "x", 0], "amount: expected a finite number within float32, got an integer of many"),
        ([1, 1.5, 0], "place: expected a text or a whole number, got 1.5"),
        ([1, ["x"], 0], "place: expected a text or a whole number, got a list"),
        (
            [1, "x", 10**400],
            "event_time: expected a number of milliseconds since 1970, got an integer of many",
        ),
        ([1, "x", True], "event_time: expected a number of milliseconds since 1970, got true"),
        ({"amount": 1, "event_time": 0}, "place: expected a text or a whole number, got null"),
        ([1, "x"], r"features: expected 3 values \(amount, place, event_time\), got 2"),
        ("x", "features: expected a list of values or an object, got a text"),
    ],
)
def test_a_reason_names_the_field_and_what_came(instance, reason):
    spec = spec_of(
        {"name": "amount", "kind": "number"},
        {"name": "place", "kind": "category"},
        {"name": "hour", "kind": "time_of_day"},
        event_time={"from": "event_time", "format": "milliseconds"},
    )
    learnt = Learnt({"place": Rarity.of_counts({"x": 1}, 0, 1)})
    encoded = RowEncoder(spec, learnt).encode([[1, "x", 0], instance])
    assert list(encoded.reasons) == [1]
    assert re.match(reason, encoded.reasons[1]), encoded.reasons[1]


def test_an_encoder_asks_for_what_training_learns():
    spec = spec_of(
        {"name": "place", "kind": "category"}, {"name": "tip", "kind": "number", "missing": "median"}
    )
    with pytest.raises(SpecError, match="expected the rarities of 'place'"):
        RowEncoder(spec)
    with pytest.raises(SpecError, match="expected the median of 'tip'"):
        ColumnEncoder(spec, Learnt({"place": Rarity.of_counts({}, 0, 1)}))
