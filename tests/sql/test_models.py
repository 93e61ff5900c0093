"""The SQL of BigQuery ML: judged by ZetaSQL, and compared with the file that BigQuery imports.

The analyzer knows CREATE MODEL itself. ML.PREDICT is declared to it by what BigQuery's manual says of it,
with the inputs and outputs of the model. It cannot know whether connection, file and endpoint exist, nor what
columns BigQuery derives from the tensors of an imported file.
"""

from __future__ import annotations

import re

import pytest
from google.cloud import bigquery
from zetasql.core import ServerError

from features.ulb import FEATURES
from model import package
from model.serving import bigquery_ml
from tests.sql import models, statements, zeta

pytest_plugins = ("tests.model.serving.fixtures",)

STATEMENTS = {
    each.site.rpartition(".")[2]: each for each in statements.statements() if statements.is_of_model(each)
}
SOURCE = [bigquery.SchemaField("transaction_id", "STRING"), bigquery.SchemaField("Time", "INT64")] + [
    bigquery.SchemaField(name, "FLOAT64") for name in FEATURES[1:]
]
OUTPUTS = {"anomaly_score": ("FLOAT64", "NULLABLE"), "encoded": ("FLOAT64", "REPEATED")}
INPUTS = {
    "onnx": {package.ONNX_INPUT: ("FLOAT64", "REPEATED")},
    "remote": dict.fromkeys(FEATURES, ("FLOAT64", "NULLABLE")),
}
NAMES = {"onnx": f"p.d.{bigquery_ml.ONNX_MODEL}", "remote": f"p.d.{bigquery_ml.REMOTE_MODEL}"}


@pytest.fixture(scope="module")
def catalogs(zetasql):
    """The source, the connection and the model of each kind."""
    return {
        kind: zeta.Catalog(
            zetasql,
            {statements.SOURCE: SOURCE},
            further=models.predicting([NAMES[kind]], INPUTS[kind], OUTPUTS),
        )
        for kind in INPUTS
    }


def sql_of(kind: str, what: str) -> str:
    return STATEMENTS[f"{kind}_{what}_sql"].sql("p.d")[0]


def test_there_is_a_statement_and_a_query_of_each_kind():
    assert sorted(STATEMENTS) == [
        "onnx_model_sql",
        "onnx_predict_sql",
        "remote_model_sql",
        "remote_predict_sql",
    ]


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("what", ["model", "predict"])
def test_bigquery_accepts_it(catalogs, kind, what):
    catalogs[kind].analyze(sql_of(kind, what))


@pytest.mark.parametrize(
    ("kind", "what", "old", "new", "reason"),
    [
        ("onnx", "predict", "transaction_id, anomaly_score", "transaction_id, score", "Unrecognized name"),
        ("remote", "predict", "transaction_id, anomaly_score", "transaction_id, score", "Unrecognized name"),
        ("onnx", "predict", "AS features", "AS feature", "features"),
        ("remote", "predict", "CAST(`V7` AS FLOAT64) AS `V7`", "CAST(`V7` AS FLOAT64) AS `V_7`", "V7"),
        ("onnx", "predict", "`V28`", "`V29`", "Unrecognized name: V29"),
        ("remote", "predict", "p.d.anomaly_", "p.d.other_", "Model not found"),
        ("onnx", "model", "MODEL_PATH", "MODEL_URI", "Unknown option: MODEL_URI"),
        ("remote", "model", "ENDPOINT =", "URL =", "Unknown option: URL"),
        ("remote", "model", "V7` FLOAT64", "V7` DOUBLES", "Type not found: DOUBLES"),
        ("remote", "model", "CONNECTION `", "CONNECTION `no-", "Connection not found"),
    ],
)
def test_a_statement_that_goes_wrong_is_caught(catalogs, kind, what, old, new, reason):
    sql = sql_of(kind, what)
    assert old in sql
    with pytest.raises(ServerError, match=reason):
        catalogs[kind].analyze(sql.replace(old, new))


def test_the_file_has_the_names_and_shapes_of_the_sql(served_artifact, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is an extra: pip install .[export]")
    network = package.eager(served_artifact.load_model(freeze=False))
    path = str(package.write_onnx(network, tmp_path / package.ONNX_FILE))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sql = sql_of("onnx", "predict")
    (array, name) = re.search(r"\[(.*?)\] AS (\w+)", sql, re.DOTALL).groups()
    columns = re.findall(r"CAST\(`(\w+)` AS FLOAT64\)", array)
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == (name, "tensor(float)", ["n", len(columns)])
    assert tuple(columns) == FEATURES
    outputs = {output.name: output for output in session.get_outputs()}
    for name, kind in bigquery_ml.OUTPUTS.items():
        assert name in sql.partition("FROM")[0]
        assert outputs[name].type == "tensor(float)"
        assert len(outputs[name].shape) == (2 if kind.startswith("ARRAY") else 1)
    declared = {
        name: "ARRAY<FLOAT64>" if mode == "REPEATED" else kind for name, (kind, mode) in OUTPUTS.items()
    }
    assert declared == bigquery_ml.OUTPUTS


TABLE = ["--dataset", "my-project.anomaly", "--source", "my-project.anomaly.transactions"]
ONNX = ["onnx", *TABLE, "--path", "gs://my-bucket/onnx"]
REMOTE = ["remote", *TABLE, "--connection", "my-project.us.vertex"]
REMOTE += ["--endpoint", "projects/my-project/locations/europe-west1/endpoints/7"]


def test_the_command_prints_the_steps_and_the_statements(served_artifact, capsys):
    assert bigquery_ml.main([*ONNX, "--model", served_artifact.uri]) == 0
    onnx = capsys.readouterr().out
    assert f"anomaly package --model {served_artifact.uri} --output out/packages --formats onnx" in onnx
    assert 'MODEL_PATH = "gs://my-bucket/onnx/model.onnx"' in onnx
    assert "roles/storage.objectViewer" in onnx
    assert bigquery_ml.main([*REMOTE, "--model", served_artifact.uri]) == 0
    remote = capsys.readouterr().out
    assert "--connection_type=CLOUD_RESOURCE --project_id=my-project" in remote
    assert "--location=us vertex\n" in remote
    assert "gcloud projects add-iam-policy-binding my-project --role=roles/aiplatform.user" in remote
    place = "https://europe-west1-aiplatform.googleapis.com/v1/projects/my-project/locations/europe-west1"
    assert f'ENDPOINT = "{place}/endpoints/7"' in remote
    for text in (onnx, remote):
        statements = [
            part for part in re.sub("^--.*$", "", text, flags=re.MULTILINE).split(";") if part.strip()
        ]
        assert [part.split()[0] for part in statements] == ["CREATE", "SELECT"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([*ONNX, "--path", "out"], "--path: expected gs://BUCKET"),
        ([*ONNX, "--dataset", "d"], "--dataset: expected PROJECT.DATASET, got 'd'"),
        ([*REMOTE, "--connection", "us.vertex"], "--connection: expected PROJECT.LOCATION.CONNECTION"),
        ([*REMOTE, "--endpoint", "7"], "--endpoint: expected projects/PROJECT/locations/REGION/endpoints"),
    ],
)
def test_a_wrong_name_is_refused(flags, text, capsys):
    assert bigquery_ml.main([*flags, "--model", "m"]) == 2
    assert text in capsys.readouterr().err


def test_a_name_of_a_feature_stays_a_name():
    sql = bigquery_ml.onnx_predict_sql("p.d", "p.d.t", ["a`b", "c\\"])
    assert "CAST(`a\\`b` AS FLOAT64)" in sql
    assert "CAST(`c\\\\` AS FLOAT64)" in sql
