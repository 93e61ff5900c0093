from __future__ import annotations

import dataclasses
import gzip
import itertools
import re

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from features.ulb import AMOUNT_INDEX, FEATURES, LABEL
from local.gcs import local_gcs
from model import data
from model.data import DataError, Dataset
from model.dataset import fingerprint


def table(n: int = 50, label: bool = True, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=n) for name in FEATURES}
    if label:
        columns[LABEL] = (np.arange(n) % 10 == 0).astype(np.int8)
    return pa.table(columns)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("label", [True, False])
def test_files_are_read_in_the_order_of_the_features(tmp_path, suffix, label):
    path = tmp_path / f"rows{suffix}"
    content = table(label=label)
    shuffled = content.select(content.column_names[::-1])
    (csv.write_csv if suffix == ".csv" else parquet.write_table)(shuffled, path)
    found = data.load(str(path))
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features[:, AMOUNT_INDEX], content["Amount"].to_numpy(), rtol=1e-6)
    assert (found.labels is None) is not label
    if label:
        assert found.labels.tolist() == content[LABEL].to_pylist()
        assert found.provenance["frauds"] == 5
    assert found.provenance["source"] == str(path)


def test_files_of_a_directory_a_pattern_and_a_bucket_are_one_table(tmp_path):
    """With another kind of number in one of them, and what is no data beside them."""
    place = tmp_path / "bucket" / "day=1"
    place.mkdir(parents=True)
    content = table()
    parquet.write_table(content.slice(0, 20), place / "part-0")
    whole = content.slice(20).set_column(0, "Time", pa.array(range(30)))
    csv.write_csv(whole, place / "part-1.csv")
    (place / ".part-0.crc").write_bytes(b"crc")
    (tmp_path / "bucket" / "_SUCCESS").touch()
    sources = [tmp_path / "bucket", f"{tmp_path}/bucket/*/part-*", f"{tmp_path}/*/"]
    with local_gcs(tmp_path):
        found = [data.load(str(source)) for source in (*sources, "gs://bucket/", "gs://bucket/day=1/*")]
    assert {fingerprint(one) for one in found} == {fingerprint(found[0])}
    assert found[0].features[:20, AMOUNT_INDEX].tolist() == content["Amount"].cast("float32").to_pylist()[:20]
    assert found[0].features[20:, 0].tolist() == list(range(30))
    assert found[0].labels.tolist() == content[LABEL].to_pylist()


def test_csv_of_other_dialects_is_the_same_data(tmp_path):
    content = table()
    csv.write_csv(content, tmp_path / "rows.csv")
    text = (tmp_path / "rows.csv").read_text()
    (tmp_path / "other.csv.gz").write_bytes(
        gzip.compress(text.replace(",", ";").replace(".", ",").replace("\n", "\r\n").encode())
    )
    first, second = (data.load(str(tmp_path / name)) for name in ("rows.csv", "other.csv.gz"))
    assert fingerprint(first) == fingerprint(second)


def bad(name: str, value: object) -> pa.Table:
    content = table()
    column = content[name].to_pylist()
    column[3] = value
    return content.set_column(content.column_names.index(name), name, pa.array(column))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (table().drop_columns(["V7", "Amount"]), r"column\(s\) missing: V7, Amount"),
        (bad(LABEL, 2), "column Class must hold 0"),
        (
            table().set_column(5, "V5", pa.array(["x"] * 50)),
            "50 of 50 rows are refused, the first is row 0: V5: expected a finite number",
        ),
    ],
)
def test_bad_columns_are_named(content, text):
    with pytest.raises(DataError, match=text):
        data.from_arrow(content, "rows.parquet")


@pytest.mark.parametrize(
    ("name", "value"), [("V3", float("nan")), ("V3", None), ("Amount", float("inf")), ("V1", 1e39)]
)
def test_a_row_that_the_spec_refuses_is_left_out_and_counted(name, value):
    read = data.from_arrow(bad(name, value), "rows.parquet")
    whole = data.from_arrow(table(), "rows.parquet")
    assert read.provenance["rows_refused"] == {name: 1}
    np.testing.assert_array_equal(read.features, np.delete(whole.features, 3, axis=0))
    assert read.labels.tolist() == np.delete(whole.labels, 3).tolist()


def test_many_refused_rows_are_an_error_that_names_the_first():
    content = bad("V3", None)
    content = content.set_column(content.column_names.index("V7"), "V7", pa.array([None] * 50, pa.float64()))
    with pytest.raises(DataError, match=r"50 of 50 rows are refused, the first is row 0: V7: expected a fin"):
        data.from_arrow(content, "rows.parquet")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.csv", "no such file"),
        ("rows.xls", "expected CSV, JSON lines or Parquet with the columns of a transaction, got .*rows.xls"),
    ],
)
def test_bad_sources_are_named(tmp_path, name, text):
    if name != "none.csv":
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=text):
        data.load(str(tmp_path / name))


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"rows.parquet"):
        data.load(str(tmp_path / "rows.parquet"))


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(table(2_000), path)
    content = path.read_bytes()
    # The footer is whole, what it points to is not.
    path.write_bytes(content[:4] + b"\xff" * 3_000 + content[-8_000:])
    with pytest.raises(DataError, match=r"rows.parquet: cannot be read"):
        data.load(str(path))


def test_a_header_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"Time,V1,Betr\xe4ge\n1,2,3\n")
    with pytest.raises(DataError, match=r"rows.csv: the names of the columns are not UTF-8"):
        data.load(str(path))


@pytest.mark.parametrize("name", ["V4", LABEL])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_is_there_twice_is_named(tmp_path, suffix, name):
    content, path = table(), tmp_path / f"rows{suffix}"
    content = content.append_column(name, content[name])
    (csv.write_csv if suffix == ".csv" else parquet.write_table)(content, path)
    with pytest.raises(DataError, match=rf"rows.*: column\(s\) there more than once: {name}"):
        data.load(str(path))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, 1, None] * 20),
        pa.array([0.0, 1.0, None] * 20),
        pa.array([False, True, None] * 20),
        pa.array(["0", "1", None] * 20),
        pa.array(["false", " True", None] * 20),
        pa.array(["nein", " JA ", None] * 20),
    ],
)
def test_labels_are_read_in_every_form_and_rows_without_one_are_left_out(values):
    content = table(60, label=False).append_column("isFraud", values)
    read = data.from_arrow(content, "rows.parquet", "isFraud")
    assert read.labels.tolist() == [0, 1] * 20
    kept = np.delete(content["V7"].to_numpy(), np.arange(2, 60, 3)).astype(np.float32)
    np.testing.assert_array_equal(read.features[:, FEATURES.index("V7")], kept)
    assert read.provenance["rows_without_label"] == 20
    assert read.provenance["frauds"] == 20


@pytest.mark.parametrize("name", ["isFraud", "is_fraud", "Label"])
def test_a_label_under_another_name_is_not_passed_over(name):
    content = table().rename_columns([*FEATURES, name])
    with pytest.raises(
        DataError, match=f"no column Class, and '{name}' may be the label: pass --label_column={name}"
    ):
        data.from_arrow(content, "rows.parquet")
    assert data.from_arrow(content, "rows.parquet", name).provenance["frauds"] == 5
    unlabelled = data.from_arrow(content, "rows.parquet", "")
    assert unlabelled.labels is None
    assert unlabelled.provenance["columns_not_used"] == [name]


def test_columns_are_found_without_case_as_in_sql():
    content = table()
    lower = data.from_arrow(content.rename_columns([name.lower() for name in content.column_names]), "rows")
    whole = data.from_arrow(content, "rows")
    np.testing.assert_array_equal(lower.features, whole.features)
    assert lower.labels.tolist() == whole.labels.tolist()


def test_a_label_column_that_is_not_there_is_named():
    with pytest.raises(DataError, match="--label_column: there is no column 'fraud'; one is called 'Class'"):
        data.from_arrow(table(), "rows.parquet", "fraud")


def test_a_split_by_time_tests_on_the_latest_rows():
    rows = rows_of()
    rows.features[5_000:] = rows.features[:5_000]
    rows = dataclasses.replace(rows, times=rows.features[:, 0])
    parts = data.split(rows, seed=0, by="time")
    times = rows.features[:, 0]
    assert times[parts.train].max() < times[parts.validation].min()
    assert times[parts.validation].max() < times[parts.test].min()
    assert len(parts.test) == 2_000
    assert parts.copies == 5_000


@pytest.mark.parametrize(
    ("label", "got"),
    [
        (pa.array([" True ", "nicht"] * 25), "got 'nicht'"),
        (pa.array([None, "vielleicht"] * 25), "got 'vielleicht'"),
        (pa.array([1] * 50, pa.date32()), "got date32[day]"),
        (pa.array([b"0", b"\xfc"] * 25).view(pa.string()), "got bytes that are not UTF-8"),
    ],
)
def test_a_label_that_is_none_is_quoted_with_what_to_write(label, got, tmp_path):
    parquet.write_table(table(label=False).append_column(LABEL, label), tmp_path / "rows.parquet")
    reason = f"column Class: expected 0 or 1, true or false, {got}; write 1 for"
    with pytest.raises(DataError, match=re.escape(reason)):
        data.load(str(tmp_path / "rows.parquet"))


def test_equal_rows_are_refused():
    rows = np.ones((6_000, 30), np.float32)
    rows[:, 0] = np.arange(6_000)
    with pytest.raises(DataError, match="no feature of the score varies"):
        data.check_enough(Dataset(rows, None))


def test_a_bigquery_name_needs_three_parts():
    with pytest.raises(
        DataError, match=r"dataset\.table: expected PROJECT\.DATASET\.TABLE, got 'dataset\.table'"
    ):
        data.load("bigquery://dataset.table")


def rows_of(n: int = 10_000, frauds: int = 200, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    labels = np.zeros(n, np.int8)
    labels[rng.choice(n, frauds, replace=False)] = 1
    return Dataset(rng.normal(size=(n, 30)).astype(np.float32), labels)


def test_split_is_complete_stratified_and_reproducible():
    rows = rows_of()
    parts = data.split(rows, seed=4)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    assert np.array_equal(np.sort(together), np.arange(10_000))
    for part, share in zip((parts.train, parts.validation, parts.test), data.SPLIT_SHARES, strict=True):
        assert len(part) == pytest.approx(share * 10_000, abs=3)
        assert rows.labels[part].sum() == pytest.approx(share * 200, abs=2)
    again, other = data.split(rows, seed=4), data.split(rows, seed=5)
    assert np.array_equal(parts.test, again.test)
    assert not np.array_equal(parts.test, other.test)


def test_copies_of_a_row_never_fall_on_both_sides():
    rows = rows_of()
    rows.features[5_000:] = rows.features[:5_000]
    parts = data.split(rows, seed=0)
    halves = [set((part % 5_000).tolist()) for part in (parts.train, parts.validation, parts.test)]
    assert [len(a & b) for a, b in itertools.combinations(halves, 2)] == [0, 0, 0]


def test_too_few_normals_are_refused():
    with pytest.raises(DataError, match="4999 normal transactions are too few: at least 5000"):
        data.split(rows_of(5_199), seed=0)


def test_too_few_rows_to_calibrate_with_are_refused():
    """Half of the rows are one and the same, which is in one part only."""
    rows = rows_of(6_000)
    rows.features[:3_000] = rows.features[0]
    with pytest.raises(DataError, match=r"left to calibrate .* at least 1000 .* only 3001 different"):
        data.split(Dataset(rows.features, None), seed=0)


def test_fingerprint_knows_the_data_again():
    assert fingerprint(rows_of()) == fingerprint(rows_of())
    assert fingerprint(rows_of()) != fingerprint(rows_of(seed=1))
    assert fingerprint(rows_of()) != fingerprint(Dataset(rows_of().features, None))


def test_the_order_of_rows_changes_neither_fingerprint_nor_split():
    """BigQuery promises none, and a model must not be judged on rows that it was trained on."""
    rows, order = rows_of(), np.random.default_rng(7).permutation(10_000)
    other = Dataset(rows.features[order], rows.labels[order])
    assert fingerprint(other) == fingerprint(rows)
    assert fingerprint(Dataset(rows.features, rows.labels[order])) != fingerprint(rows)
    found, again = data.split(rows, seed=2), data.split(other, seed=2)
    for name in ("train", "validation", "test"):
        assert set(order[getattr(again, name)].tolist()) == set(getattr(found, name).tolist())


def test_a_refused_read_says_which_project_pays_and_how_to_change_it(monkeypatch):
    from google.api_core.exceptions import Forbidden

    from model.bigquery_table import read_table

    class Refusing:
        def create_read_session(self, **kwargs: object) -> None:
            raise Forbidden("bigquery.readsessions.create denied")

    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(ValueError, match=r"denied.*projects/public: set GOOGLE_CLOUD_PROJECT"):
        read_table("public.some.table", lambda names: FEATURES, client=Refusing())


@pytest.mark.integration
@pytest.mark.parametrize("label", [True, False])
def test_a_bigquery_table_is_read_through_the_storage_api(
    bigquery_emulator, bigquery_client, read_client, dataset, label, monkeypatch
):
    from model.bigquery_table import read_table

    names = [*FEATURES, *([LABEL] if label else [])]
    rows = ", ".join(
        "(" + ", ".join(str(float(i * 100 + j)) for j in range(30)) + (f", {i % 2}" if label else "") + ")"
        for i in range(5)
    )
    columns = ", ".join(f"{name} {'INT64' if name == LABEL else 'FLOAT64'}" for name in names)
    name = f"{bigquery_emulator.project}.{dataset}.rows"
    bigquery_client.query(f"CREATE TABLE `{name}` ({columns})").result()
    bigquery_client.query(f"INSERT INTO `{name}` ({', '.join(names)}) VALUES {rows}").result()
    table = read_table(name, lambda names: data.used_columns(names, name), client=read_client)
    found = data.from_arrow(table, name)
    order = np.argsort(found.features[:, 0])
    np.testing.assert_array_equal(found.features[order], np.arange(5)[:, None] * 100.0 + np.arange(30))
    assert (found.labels is not None) is label
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", bigquery_emulator.bigquery_storage)
    assert fingerprint(data.load(f"bigquery://{name}")) == fingerprint(found)
    with pytest.raises(DataError, match=r"--label_column: there is no column 'V29'"):
        read_table(name, lambda names: data.used_columns(names, name, "V29"), client=read_client)
    with pytest.raises(ValueError, match="bigquery://"):
        read_table(f"{name}_not_there", lambda names: FEATURES, client=read_client)
