"""Writes SQL for BigQuery to score a table: by model.onnx in BigQuery, or by an endpoint of Vertex AI."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.command import Parser, command
from common.names import CONNECTION, DATASET, ENDPOINT, GCS, TABLE
from common.options import add_options, option, read_options
from model import artifact
from model.outputs import ANOMALY_SCORE, ENCODED
from model.package import ONNX_FILE, ONNX_INPUT

EXAMPLES: Final = """
  anomaly bigquery_ml onnx --model out/model --dataset P.D --source P.D.T --path gs://B/onnx > onnx.sql
  anomaly bigquery_ml remote --model out/model --dataset P.D --source P.D.T --connection P.us.vertex \\
      --endpoint projects/P/locations/us-central1/endpoints/1 > remote.sql
  bq query --project_id=P --use_legacy_sql=false < onnx.sql
"""
ONNX_MODEL: Final = "anomaly_onnx"
REMOTE_MODEL: Final = "anomaly_remote"
OUTPUTS: Final = {ANOMALY_SCORE: "FLOAT64", ENCODED: "ARRAY<FLOAT64>"}
"""The outputs that the SQL names, with their types. They are in the answer of every server."""
_COLUMNS: Final = ", ".join(["transaction_id", *OUTPUTS])
ONNX_STEPS: Final = """\
-- 1. Pack the model as ONNX and copy it to a bucket in the location of the dataset:
--      anomaly package --model {model} --output out/packages --formats onnx
--      gcloud storage cp out/packages/{file} {path}/
-- 2. Run this file. Whoever runs it needs, and no workers or machines are paid for:
--      roles/bigquery.jobUser on the project, roles/bigquery.dataEditor on the dataset {dataset},
--      roles/bigquery.dataViewer on {source}, roles/storage.objectViewer on the bucket.
"""
REMOTE_STEPS: Final = """\
-- 1. Deploy the model to an endpoint: anomaly vertex upload, anomaly vertex deploy. BigQuery sends the
--    features by name, which the custom container and the handler of the archive both take.
-- 2. Make the connection in the location of the dataset, and let its account call the endpoint:
--      bq mk --connection --connection_type=CLOUD_RESOURCE --project_id={project} \\
--          --location={location} {name}
--      bq show --connection {project}.{location}.{name}
--      gcloud projects add-iam-policy-binding {endpoint_project} --role=roles/aiplatform.user \\
--          --member=serviceAccount:ACCOUNT_OF_THE_CONNECTION
-- 3. Run this file. Whoever runs it needs:
--      roles/bigquery.jobUser and roles/bigquery.connectionUser on the project,
--      roles/bigquery.dataEditor on the dataset {dataset}, roles/bigquery.dataViewer on {source}.
"""


@dataclass(frozen=True)
class TableOptions:
    """The model, and the table that it scores."""

    model: str = option(metavar="DIR", help="artifact directory, local or gs://; it names the features")
    dataset: str = option(metavar="PROJECT.DATASET", help="takes the model")
    source: str = option(metavar="TABLE", help="PROJECT.DATASET.TABLE with transaction_id and the features")

    def __post_init__(self) -> None:
        DATASET.check(self.dataset, "--dataset")
        TABLE.check(self.source, "--source")


@dataclass(frozen=True)
class OnnxOptions:
    """The place of model.onnx."""

    path: str = option(metavar="gs://DIR", help=f"directory of {ONNX_FILE}")

    def __post_init__(self) -> None:
        GCS.check(self.path, "--path")


@dataclass(frozen=True)
class RemoteOptions:
    """The endpoint, and the connection by which BigQuery calls it."""

    connection: str = option(metavar="PROJECT.LOCATION.NAME", help="connection of kind CLOUD_RESOURCE")
    endpoint: str = option(metavar="ENDPOINT", help="projects/P/locations/L/endpoints/E, a public one")

    def __post_init__(self) -> None:
        CONNECTION.check(self.connection, "--connection")
        ENDPOINT.check(self.endpoint, "--endpoint")


def onnx_model_sql(dataset: str, path: str) -> str:
    """Builds the statement that imports model.onnx from the directory `path`."""
    file = json.dumps(f"{path.rstrip('/')}/{ONNX_FILE}")
    model = f"{dataset}.{ONNX_MODEL}"
    return f"CREATE OR REPLACE MODEL `{model}`\nOPTIONS (MODEL_TYPE = 'ONNX', MODEL_PATH = {file})"


def onnx_predict_sql(dataset: str, source: str, features: Sequence[str]) -> str:
    """Builds the query that scores a table by the imported model, whose one input is an array."""
    values = ",\n      ".join(f"CAST({_quoted(name)} AS FLOAT64)" for name in features)
    query = f"SELECT transaction_id, [\n      {values}\n    ] AS {ONNX_INPUT}\n    FROM `{source}`"  # noqa: S608 - names are checked
    model = f"{dataset}.{ONNX_MODEL}"
    return f"SELECT {_COLUMNS}\nFROM ML.PREDICT(\n  MODEL `{model}`,\n  (\n    {query}\n  )\n)"


def remote_model_sql(dataset: str, connection: str, endpoint: str, features: Sequence[str]) -> str:
    """Builds the statement that makes a model of an endpoint, with the features as columns."""
    inputs = ",\n  ".join(f"{_quoted(name)} FLOAT64" for name in features)
    outputs = ", ".join(f"{name} {kind}" for name, kind in OUTPUTS.items())
    url = json.dumps(_url(endpoint))
    return (
        f"CREATE OR REPLACE MODEL `{dataset}.{REMOTE_MODEL}`\nINPUT (\n  {inputs}\n)\nOUTPUT ({outputs})\n"
        f"REMOTE WITH CONNECTION `{connection}`\nOPTIONS (ENDPOINT = {url})"
    )


def remote_predict_sql(dataset: str, source: str, features: Sequence[str]) -> str:
    """Builds the query that scores a table by the endpoint."""
    columns = ",\n      ".join(f"CAST({_quoted(name)} AS FLOAT64) AS {_quoted(name)}" for name in features)
    query = f"SELECT\n      transaction_id,\n      {columns}\n    FROM `{source}`"
    model = f"{dataset}.{REMOTE_MODEL}"
    return f"SELECT {_COLUMNS}\nFROM ML.PREDICT(\n  MODEL `{model}`,\n  (\n    {query}\n  )\n)"


def _url(endpoint: str) -> str:
    return f"https://{ENDPOINT.split(endpoint)['REGION']}-aiplatform.googleapis.com/v1/{endpoint}"


def _quoted(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly bigquery_ml`: prints one file of SQL, its steps in comments."""
    parser = Parser("anomaly bigquery_ml", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, group in (
        ("onnx", "score inside BigQuery by model.onnx", OnnxOptions),
        ("remote", "score by an endpoint of Vertex AI", RemoteOptions),
    ):
        subparser = commands.add_parser(name, help=text, description=text)
        add_options(subparser, TableOptions)
        add_options(subparser, group)
    args = parser.parse_args(argv)
    table = read_options(TableOptions, args)
    place = {"dataset": table.dataset, "source": table.source}
    if args.command == "onnx":
        onnx = read_options(OnnxOptions, args)
        steps = ONNX_STEPS.format(model=table.model, file=ONNX_FILE, path=onnx.path.rstrip("/"), **place)
    else:
        remote = read_options(RemoteOptions, args)
        parts = CONNECTION.split(remote.connection)
        steps = REMOTE_STEPS.format(
            project=parts["PROJECT"],
            location=parts["LOCATION"],
            name=parts["CONNECTION"],
            endpoint_project=ENDPOINT.split(remote.endpoint)["PROJECT"],
            **place,
        )
    features = artifact.read(table.model).manifest.features
    if args.command == "onnx":
        statements = (onnx_model_sql(table.dataset, onnx.path), onnx_predict_sql(**place, features=features))
    else:
        statements = (
            remote_model_sql(table.dataset, remote.connection, remote.endpoint, features),
            remote_predict_sql(**place, features=features),
        )
    print(steps + "\n" + "".join(f"{sql};\n\n" for sql in statements).rstrip("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
