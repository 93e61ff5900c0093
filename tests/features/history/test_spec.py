"""History features in a spec: what is refused, which fields they need, and what an encoder asks for."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from features.columns import ColumnEncoder, ColumnError
from features.declaration import FeatureSpec
from features.history.columns import add_history
from features.history.plan import plans
from features.preview import preview
from features.reading import SpecFileError, parse
from features.rows import RowEncoder

SPEC = """\
account: card
event_time: at
features:
- {name: amount, kind: number, scale: log}
- {name: level, kind: history, statistic: deviation, of: amount, by: account, half_life: 30d}
- {name: day, kind: history, statistic: count, by: account, half_life: 1d}
- {name: idle, kind: history, statistic: since_last, by: account}
- {name: new_shop, kind: history, statistic: novelty, of: shop.name, by: account}
- {name: usual, kind: history, statistic: share, of: category, by: terminal, half_life: 90d}
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (": deviation", ": deviance", "line 5: features[1].statistic: expected one of count, sum,"),
        (", statistic: deviation", "", "line 5: features[1]: expected a statistic: write statistic:"),
        (", half_life: 30d", "", "line 5: features[1]: expected a half-life: write half_life:"),
        ("30d", "30", "line 5: features[1].half_life: expected a half-life such as 90m, 12h or 30d"),
        ("30d", "4000d", "line 5: features[1].half_life: expected a half-life such as 90m, 12h or 30d"),
        ("of: amount, by: account", "by: account", "line 5: features[1]: expected of: write of: with the"),
        ("of: amount", "of: day", "line 5: features[1].of: 'day' is a history feature: name a field"),
        ("of: amount", "of: at", "line 5: features[1].of: 'at' is the event_time: name another field"),
        ("of: amount", "of: category", "line 9: features[5].of: expected a field that is a category, got"),
        ("count, by: account", "count, of: amount, by: account", "line 6: features[2].of: expected no of"),
        ("count, by: account", "count", "line 6: features[2]: expected by: write by: account"),
        ("since_last, by: account", "since_last, by: card", "line 7: features[3].by: 'card' is the account"),
        (
            "by: account}",
            "by: account, half_life: 1d}",
            "line 7: features[3].half_life: expected no half_life",
        ),
        ("of: shop.name", "of: amount", "line 8: features[4].of: expected a field that is a category, got"),
        ("amount, kind", "amount, from: idle, kind", "features[0].from: 'idle' is the name of a history"),
        ("by: terminal", "by: shop", "line 8: features[4].of: 'shop.name' lies within the field"),
        (
            "{name: day,",
            "{name: day, missing: median,",
            "line 6: features[2].missing: expected one of the keys of",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_line(old: str, new: str, problem: str) -> None:
    with pytest.raises(SpecFileError) as error:
        parse(SPEC.replace(old, new, 1))
    assert problem in str(error.value)


def test_a_spec_says_what_a_message_and_what_an_instance_holds() -> None:
    spec = parse(SPEC)
    assert spec.fields == ("amount", "level", "day", "idle", "new_shop", "usual")
    assert set(spec.field_values.values()) == {"number"}
    assert not spec.is_numeric
    assert spec.message_values == {
        "amount": "number",
        "shop.name": "category",
        "category": "category",
        "terminal": "category",
    }
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert spec.features[4].half_life == "90d"


def test_plans_divide_the_features_by_key() -> None:
    of_account, of_terminal = plans(parse(SPEC))
    assert (of_account.key, of_account.names, of_account.columns) == (
        None,
        ("level", "day", "idle", "new_shop"),
        (1, 2, 3, 4),
    )
    assert (of_terminal.key, of_terminal.names, of_terminal.columns) == ("terminal", ("usual",), (5,))
    assert pickle.loads(pickle.dumps(of_account)) == of_account
    assert of_account.version == plans(parse(SPEC.replace("name: idle", "name: rest")))[0].version
    assert of_account.version != plans(parse(SPEC.replace("30d", "31d")))[0].version


def test_who_sends_no_history_is_told_whose_it_is() -> None:
    spec = parse(SPEC)
    encoder = RowEncoder(spec)
    complete = {"amount": 3, "level": 0.5, "day": 2, "idle": 60, "new_shop": 0, "usual": 1}
    encoded = encoder.encode([complete, complete | {"level": None}, {**complete, "usual": "x"}])
    assert encoded.inputs[0].tolist() == [3, 0.5, 2, 60, 0, 1]
    ending = "a number that the pipelines compute and that who asks a server directly has to send, got"
    over = "over the earlier transactions of the"
    assert encoded.reasons == {
        1: f"level: expected the deviation of amount {over} account, {ending} null",
        2: f"usual: expected the share of category {over} terminal, {ending} a text",
    }
    columns = {name: pa.array([value, None]) for name, value in complete.items()}
    columns["amount"] = pa.array([3, 4])
    assert ColumnEncoder(spec).encode(columns).reasons == {1: encoded.reasons[1]}


def test_columns_without_the_history_leave_its_inputs_open() -> None:
    encoded = ColumnEncoder(parse(SPEC)).encode({"amount": pa.array([3.0, None])})
    assert encoded.inputs[0][0] == 3
    assert np.isnan(encoded.inputs[0][1:]).all()
    assert list(encoded.reasons) == [1]


TABLE = pa.table(
    {
        "card": ["a", "a", None, "a"],
        "at": [
            "2026-01-03T00:00:00Z",
            "2026-01-01T00:00:00Z",
            "2026-01-02T00:00:00Z",
            "2026-01-02T00:00:00Z",
        ],
        "amount": [10.0, 20.0, 30.0, None],
        "shop": [{"name": "x"}, {"name": "x"}, {"name": "y"}, {"name": "y"}],
        "category": ["c", "c", "c", "d"],
        "terminal": [1, 1, 1, 1],
    }
)


def test_a_table_gets_the_history_in_the_order_of_time() -> None:
    spec = parse(SPEC)
    columns = add_history(
        spec,
        TABLE,
        {name: pa.array([10.0, 20.0, 30.0, None]) for name in ["amount"]}
        | {
            "shop.name": pa.array(["x", "x", "y", "y"]),
            "category": TABLE["category"].combine_chunks(),
            "terminal": TABLE["terminal"].combine_chunks(),
        },
    )
    # The last row is refused for its amount: it counts nowhere. The third has no account.
    assert columns["day"].to_pylist() == [0.25, 0.0, 0.0, 0.0]
    assert columns["idle"].to_pylist() == [2 * 86_400, 90 * 86_400, 90 * 86_400, 90 * 86_400]


@pytest.mark.parametrize(("column", "word"), [("card", "account:"), ("at", "event_time:")])
def test_a_table_without_account_or_time_is_refused(column: str, word: str) -> None:
    columns = {"amount": pa.array([1.0]), "shop.name": pa.array(["x"])}
    with pytest.raises(
        ColumnError, match=f"no column '{column}'.*write {word} with the column in the feature spec"
    ):
        add_history(parse(SPEC), TABLE.drop_columns([column]), columns)


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        (pa.array(["b", "c", "a"]), [1.0, 2.0, 0.0]),
        (pa.array(["b", "c", "a"]).dictionary_encode(), [1.0, 2.0, 0.0]),
        (pa.array([9, 10, 100]), [2.0, 0.0, 1.0]),  # as texts, which they are in a job
        (pa.array([0.3, 0.2, 0.1]), [0.0, 1.0, 2.0]),
        (None, [0.0, 1.0, 2.0]),
    ],
    ids=["texts", "dictionary", "integers", "no ids", "no column"],
)
def test_rows_of_one_time_go_by_their_ids_as_in_a_batch_job(
    ids: pa.Array | None, wanted: list[float]
) -> None:
    day = {"name": "day", "kind": "history", "statistic": "count", "by": "account", "half_life": "1d"}
    spec = FeatureSpec.from_json({"features": [{"name": "amount", "kind": "number"}, day]})
    columns = {"account_id": pa.array(["x"] * 3), "event_time": pa.array([7] * 3)}
    table = pa.table(columns if ids is None else columns | {"transaction_id": ids})
    assert add_history(spec, table, {"amount": pa.array([1.0] * 3)})["day"].to_pylist() == wanted


def test_a_preview_shows_the_history() -> None:
    rows = {row["becomes"]: row["examples"] for row in preview(parse(SPEC), TABLE).rows}
    assert rows["feature day: how many transactions this account makes, half-life 1 day"].startswith(
        "0.25 -> 0.25"
    )
