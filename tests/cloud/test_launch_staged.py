"""The real DataflowRunner submits both pipelines; what it staged then runs in a fresh environment.

The fresh environment has what setup.py requires in the versions of constraints.txt, file by file through
links to what is installed here, and of the project only the staged package. On the image's Python these are
the packages of templates/requirements.txt, no more and no fewer. STAGED_PYTHON names
another one, such as one into which templates/requirements.txt was installed from the registry by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from google.cloud.dataflow_v1beta3.types import Job
from google.cloud.pubsub_v1 import PublisherClient
from google.protobuf import json_format
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cloud import launch, versions
from common.clients import BigQueryEndpoints
from local.endpoints import Endpoints
from local.runner import LocalStreamingRunner, run_until_drained
from pipelines import batch, streaming
from templates import lock
from tests.cloud.google_server import Google
from tests.templates.test_image import LOCKED, pinned
from transforms import metrics

pytestmark = pytest.mark.integration

BUCKET = "staging-bucket"
SCORED = ("transaction_id", "anomaly_score", "severity", "encoded", "top_features", "model_version")
RUN_STAGED = Path(__file__).with_name("run_staged.py")


def payloads(count: int = 40) -> list[bytes]:
    rows = [
        {
            "transaction_id": f"t{i:03}",
            "event_time": "2026-01-01T00:00:00Z",
            "features": [3600.0 * i, *[(i * j % 17) / 3 - 2 for j in range(28)], float(i * i)],
        }
        for i in range(count)
    ]
    return [*(json.dumps(row).encode() for row in rows), b'{"features": [1, 2]}']


def required(project: str) -> dict[str, metadata.Distribution]:
    """Everything that a project requires on this interpreter, directly or not, by canonical name.

    The lock holds for the image's Python and for torch without CUDA. Another interpreter or another build
    of torch requires more or less, and its packages' metadata say what.
    """
    reached: dict[str, metadata.Distribution] = {}
    todo = [(project, "")]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        reached[name] = metadata.distribution(name)
        for requirement in map(Requirement, reached[name].requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            wanted = {(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)}
            todo += wanted - seen
            seen |= wanted
    del reached[project]
    return reached


def link(distribution: metadata.Distribution, packages: Path) -> None:
    """Links every installed file of a distribution into another site-packages."""
    for line in (distribution.read_text("RECORD") or "").splitlines():
        name = line.rsplit(",", 2)[0].strip('"')
        if name.startswith(("..", "/")):  # scripts
            continue
        target = packages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(str(distribution.locate_file(name)))


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new virtual environment with the locked requirements, and nothing else."""
    if os.environ.get("STAGED_PYTHON"):
        return Path(os.environ["STAGED_PYTHON"])
    place = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    distributions = required("beam-transaction-anomaly")
    here = pinned(f"{sys.version_info.major}.{sys.version_info.minor}")
    for name, distribution in distributions.items():
        # Another build of torch will do: its version differs by what follows the plus sign.
        installed, pin = distribution.version.partition("+")[0], here.get(name)
        assert pin in (None, installed), f"{name} is {installed} here and {pin} in constraints.txt"
        link(distribution, packages)
    python = place / "bin" / "python"
    listing = "from importlib import metadata; print(*(d.name for d in metadata.distributions()))"
    listed = subprocess.run(
        [python, "-I", "-c", listing], cwd=place, capture_output=True, text=True, check=True
    )
    assert {canonicalize_name(name) for name in listed.stdout.split()} == distributions.keys()
    if versions.here()[0] == lock.PYTHON and not torch.version.cuda:
        assert distributions.keys() == LOCKED.keys()
    return python


@dataclass
class Staged:
    """The files that a submission left in the bucket.

    Attributes:
      job: the job that was posted, as Dataflow's own message.
      pipeline: pipeline.pb.
      directory: a copy of the staged files.
    """

    job: Job
    pipeline: proto.Pipeline
    directory: Path

    def execute(self, python: Path, *args: str) -> None:
        """Installs the staged package, as a worker does, and runs the staged pipeline."""
        package = self.directory / "workflow.tar.gz"
        pip = [sys.executable, "-m", "pip", f"--python={python}", "--quiet", "--disable-pip-version-check"]
        build = ["--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall"]
        subprocess.run([*pip, "install", *build, str(package)], check=True)
        command = [str(python), "-I", str(RUN_STAGED), str(self.directory / "pipeline.pb"), *args]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture
def submit(google: Google, model_dir: Path, tmp_path: Path):
    """Launches a pipeline by --via=direct without an image, and collects what was staged."""
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    for file in model_dir.iterdir():
        google.storage.put(BUCKET, f"model/{file.name}", file.read_bytes())

    def run(pipeline: str, *argv: str) -> Staged:
        code = launch.main(
            [
                *(pipeline, "--via=direct", "--skip_preflight", f"--dataflow_endpoint={google.url}"),
                *("--project=local-project", f"--bucket={BUCKET}", "--job_name=staged", *argv),
            ]
        )
        assert code == 0
        ((body,),) = (google.bodies("POST", r"/v1b3/projects/local-project/locations/us-central1/jobs"),)
        job = Job.wrap(json_format.ParseDict(body, Job.pb(Job())))
        (at,) = {name.rpartition("/")[0] for name in google.storage.names(BUCKET, "staging/")}
        for name in google.storage.names(BUCKET, f"{at}/"):
            (tmp_path / name.rpartition("/")[2]).write_bytes(google.storage.objects[BUCKET, name].data)
        content = (tmp_path / "pipeline.pb").read_bytes()
        return Staged(job, proto.Pipeline.FromString(content), tmp_path)

    return run


def check_job(staged: Staged, google: Google, streaming_job: bool) -> None:
    """The job as Dataflow would read it, and that everything it names was staged whole."""
    job = staged.job
    assert job.type_.name == ("JOB_TYPE_STREAMING" if streaming_job else "JOB_TYPE_BATCH")
    assert dict(job.labels)["app"] == "transaction-anomaly"
    pool = job.environment.worker_pools[0]
    packages = {package.name: package.location for package in pool.packages}
    assert set(packages) == {"workflow.tar.gz", "submission_environment_dependencies.txt"}
    for location in packages.values():
        name = location.removeprefix(f"storage.googleapis.com/{BUCKET}/")
        assert (BUCKET, name) in google.storage.objects
    options = json_format.MessageToDict(Job.pb(job).environment.sdk_pipeline_options)["options"]
    assert not options.get("save_main_session")
    assert options["max_num_workers"] == 4
    assert job.environment.service_account_email == "anomaly-worker@local-project.iam.gserviceaccount.com"
    content = (staged.directory / "pipeline.pb").read_bytes()
    assert options["pipelineProtoHash"] == hashlib.sha256(content).hexdigest()
    (environment,) = staged.pipeline.components.environments.values()
    for dependency in environment.dependencies:
        payload = proto.ArtifactUrlPayload.FromString(dependency.type_payload)
        staged_file = staged.directory / payload.url.rpartition("/")[2]
        assert payload.sha256 == hashlib.sha256(staged_file.read_bytes()).hexdigest()


def rows(table: pa.Table) -> list[dict]:
    return sorted(table.select(SCORED).to_pylist(), key=lambda row: row["transaction_id"])


def read_parquet(google: Google, name: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(google.storage.objects[BUCKET, name].data))


def read_scores(endpoints: Endpoints, dataset: str) -> list[dict]:
    client = BigQueryEndpoints(endpoints.bigquery).client("local-project")
    found = client.query_and_wait(f"SELECT * FROM `local-project.{dataset}.scores`")
    return rows(found.to_arrow(create_bqstorage_client=False))


def bigquery_flags(endpoints: Endpoints, dataset: str) -> list[str]:
    return [
        f"--output_dataset=local-project.{dataset}",
        f"--bigquery_endpoint={endpoints.bigquery}",
        f"--bigquery_storage_endpoint={endpoints.bigquery_storage}",
    ]


def test_the_staged_batch_scores_as_a_direct_run(
    submit, google: Google, fresh_python, bigquery_emulator: Endpoints, dataset: str, model_dir, tmp_path
):
    lines = b"\n".join(payloads())
    google.storage.put(BUCKET, "input/transactions.jsonl", lines)
    sinks = [f"--output=gs://{BUCKET}/scored", *bigquery_flags(bigquery_emulator, dataset)]
    staged = submit("batch", f"--input=gs://{BUCKET}/input/*.jsonl", *sinks)
    check_job(staged, google, streaming_job=False)
    staged.execute(fresh_python)
    # What the package requires is locked, and what is locked fits together.
    pip_check = [sys.executable, "-m", "pip", f"--python={fresh_python}", "check"]
    checked = subprocess.run(pip_check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout

    (local := tmp_path / "transactions.jsonl").write_bytes(lines)
    direct = [f"--input={local}", f"--model={model_dir}", f"--output={tmp_path / 'scored'}"]
    batch.run(direct).wait_until_finish()
    expected = rows(pq.read_table(list((tmp_path / "scored").glob("scores-*.parquet"))))
    assert len(expected) == 40
    parts = google.storage.names(BUCKET, "scored/scores-")
    assert rows(pa.concat_tables(read_parquet(google, name) for name in parts)) == expected
    assert read_scores(bigquery_emulator, dataset) == expected
    errors = google.storage.names(BUCKET, "scored/error_records-")
    assert sum(read_parquet(google, name).num_rows for name in errors) == 1


def test_the_staged_stream_scores_as_a_direct_run(
    submit, google: Google, fresh_python, local_stack: Endpoints, channel, dataset: str, model_dir, tmp_path
):
    staged = submit(
        "streaming",
        f"--subscription={channel.subscription}",
        f"--alert_topic={channel.topic}",
        "--medium_threshold=0.0",
        *bigquery_flags(local_stack, dataset),
    )
    check_job(staged, google, streaming_job=True)
    assert "streaming_mode_at_least_once" in staged.job.environment.service_options
    messages, published = tmp_path / "messages", tmp_path / "published"
    encoded = [PubsubMessage(payload, {"n": str(i)})._to_proto_str() for i, payload in enumerate(payloads())]
    messages.write_text("\n".join(base64.b64encode(message).decode() for message in encoded))
    staged.execute(fresh_python, f"--messages={messages}", f"--published={published}")
    scored = read_scores(local_stack, dataset)
    assert len(scored) == 40

    publisher = PublisherClient()
    for payload in payloads():
        publisher.publish(channel.topic, payload).result()
    publisher.transport.close()
    argv = [
        f"--subscription={channel.subscription}",
        f"--model={model_dir}",
        "--medium_threshold=0.0",
        *bigquery_flags(local_stack, f"{dataset}_direct"),
    ]
    result = streaming.run(argv, runner=LocalStreamingRunner())

    def is_done() -> bool:
        totals = metrics.totals(result)
        return totals.get(metrics.ROWS_SCORED, 0) + totals.get(metrics.DEAD_LETTERS, 0) >= 41

    run_until_drained(result, is_done, timeout=120)
    assert read_scores(local_stack, f"{dataset}_direct") == scored

    alerts = [PubsubMessage._from_proto_str(base64.b64decode(line)) for line in published.read_text().split()]
    ids = sorted(json.loads(alert.data)["transaction_id"] for alert in alerts)
    assert ids == [row["transaction_id"] for row in scored if row["severity"] != "none"]
    assert ids
