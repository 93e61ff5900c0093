"""A look at data reads what training reads: dialects of CSV, compressed files, directories, BigQuery."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from common.anomaly import main
from features.declaration import FeatureSpec
from features.reading import read
from features.samples import SampleError, read_sample
from model import data

SPEC = FeatureSpec.from_json(
    {"features": [{"name": "amount", "kind": "number"}, {"name": "country", "kind": "category"}]}
)
PLAIN = "amount,country,note\n1.5,NZ,a b\n,DE,\n12,Österreich,c\n"
DIALECTS = {
    "plain.csv": PLAIN.encode(),
    "quoted.csv": '"amount","country"\r\n"1.5","NZ"\r\n"","DE"\r\n"12","Österreich"\r\n'.encode(),
    "semicolon.csv": PLAIN.replace(",", ";").replace("1.5", "1,5").encode(),
    "bom.tsv": b"\xef\xbb\xbf" + PLAIN.replace(",", "\t").encode(),
    "packed.csv.gz": gzip.compress(PLAIN.encode()),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_are_the_same_sample(name, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(DIALECTS[name])
    table = read_sample(str(path))
    assert table["amount"].to_pylist() == [1.5, None, 12.0]
    assert table["country"].to_pylist() == ["NZ", "DE", "Österreich"]
    assert read_sample(str(path), rows=1).to_pylist() == table.slice(0, 1).to_pylist()


def test_a_type_that_only_later_rows_tell_is_that_of_the_sample(tmp_path: Path):
    path = tmp_path / "late.csv"
    rows = "".join(f"{i},{'x' * 80}\n" for i in range(60_000))  # more than one block
    path.write_text(f"amount,note\n{rows}1.5,y\n", encoding="utf-8")
    assert read_sample(str(path))["amount"].type == pa.float64()
    assert read_sample(str(path), rows=100)["amount"].type == pa.int64()


@pytest.mark.parametrize("where", ["rows", "rows/*/*.parquet", "rows/"])
def test_partitions_are_columns_for_a_look_and_for_training(where, tmp_path: Path):
    for country, amounts in (("NZ", [1.0, 2.0]), ("DE", [3.0])):
        directory = tmp_path / "rows" / f"country={country}"
        directory.mkdir(parents=True)
        parquet.write_table(pa.table({"amount": amounts}), directory / "part-0.parquet")
    (tmp_path / "rows" / "_SUCCESS").touch()
    source = str(tmp_path / where) + ("/" if where.endswith("/") else "")
    rows = read_sample(source)
    assert sorted(rows["country"].to_pylist()) == ["DE", "NZ", "NZ"]
    assert read_sample(source, rows=2).num_rows == 2
    loaded = data.load(source, spec=SPEC)
    assert sorted(loaded.columns["country"].to_pylist()) == ["DE", "NZ", "NZ"]


def test_what_is_no_table_is_named(tmp_path: Path):
    with pytest.raises(SampleError, match=r"--data: expected CSV, JSON lines or Parquet .* no such file"):
        read_sample(str(tmp_path / "none.csv"))
    (tmp_path / "x.csv").write_text("1,2\n3,4\n")
    with pytest.raises(SampleError, match=r"x.csv: expected the names of the columns in the first line"):
        read_sample(str(tmp_path / "x.csv"))


@pytest.mark.integration
def test_a_first_spec_of_a_table_of_bigquery(
    bigquery_emulator, bigquery_client, dataset, tmp_path, monkeypatch
):
    name = f"{bigquery_emulator.project}.{dataset}.payments"
    bigquery_client.query(
        f"CREATE TABLE `{name}` (id STRING, amount NUMERIC, time TIMESTAMP, "
        "merchant STRUCT<category STRING, country STRING>, is_fraud BOOL)"
    ).result()
    rows = ", ".join(
        f"('t-{i}', {i % 97}.25, TIMESTAMP '2026-03-01 {i % 24:02}:00:00 UTC', "
        f"STRUCT('{('fuel', '料理')[i % 2]}', '{('NZ', 'DE', 'FR')[i % 3]}'), {str(i % 50 == 0).lower()})"
        for i in range(200)
    )
    bigquery_client.query(f"INSERT INTO `{name}` VALUES {rows}").result()
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", bigquery_emulator.bigquery)
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", bigquery_emulator.bigquery_storage)
    output = tmp_path / "features.yaml"
    assert main(["features", "infer", "--data", f"bigquery://{name}", "--output", str(output)]) == 0
    spec = read(output)
    assert (spec.roles.transaction_id, spec.roles.event_time, spec.roles.label) == ("id", "time", "is_fraud")
    kinds = {feature.source: feature.kind for feature in spec.features}
    assert kinds["amount"] == "number"
    assert kinds["merchant.category"] == kinds["merchant.country"] == "category"
    assert main(["features", "check", "--data", f"bigquery://{name}", "--features", str(output)]) == 0
