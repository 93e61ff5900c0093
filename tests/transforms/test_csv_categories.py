"""Categories of a CSV file: training and a batch job read the same texts."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from features.declaration import FeatureSpec
from features.samples import read_sample
from model import data
from transforms.columnar import columns_of, source_columns, to_transactions
from transforms.csv_source import read_rows
from transforms.forms import Encoding
from transforms.message import MessageRules
from transforms.shares import Range

SPEC = FeatureSpec.from_json(
    {
        "features": [
            {"name": "amount", "kind": "number"},
            {"name": "postcode", "kind": "category"},
            {"name": "mcc", "kind": "category", "missing": "own"},
            {"name": "discount", "kind": "category"},
        ]
    }
)
COMMAS = "Amount;Postcode;MCC;Discount\n" + "1,50;01067;5411,0;0,0\n2,25;99084;;10,0\n" * 30
POINTS = "amount,postcode,mcc,discount\n" + "1.50,01067,5411.0,0.0\n2.25,99084,,10.0\n" * 30


@pytest.mark.parametrize("content", [COMMAS, POINTS], ids=["commas", "points"])
def test_training_and_batch_know_the_same_values(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    learnt = data.load(str(path), spec=SPEC).learnt
    rules = MessageRules(encoding=Encoding(SPEC, learnt))
    share = Range(str(path), 0, None)
    numbers, categories = columns_of(rules, "number"), columns_of(rules, "category")
    (rows,) = read_rows(share, source_columns(rules), numbers, categories=categories)
    parsed = to_transactions(rows.batch, dt.datetime.now(dt.UTC), rules)
    assert parsed.dead_letters.num_rows == 0
    expected = {"postcode": {"01067", "99084"}, "mcc": {"5411"}, "discount": {"0", "10"}}
    raw = parsed.transactions["inputs"]
    sample = read_sample(str(path), categories=SPEC.categories).rename_columns(SPEC.fields)
    for name, values in expected.items():
        assert set(learnt.categories[name].values) == values
        for column in (raw.field(raw.type.get_field_index(name)), sample[name]):
            assert {value for value in column.to_pylist() if value} == values
