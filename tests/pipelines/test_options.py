"""Options are checked before anything runs, and the message says what to do."""

import copy
import hashlib

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, StandardOptions

from common import clients
from common.options import OptionError
from pipelines import batch, streaming, wiring
from pipelines.options import DetectionOptions

SUBSCRIPTION = "--subscription=projects/my-project/subscriptions/transactions"
DATASET = "--output_dataset=my-project.anomaly"


def refused(module, argv, capsys):
    """The error of a command that ends before the job."""
    try:
        status = module.main(argv)
    except SystemExit as stopped:  # argparse's own
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--model=m", DATASET], "expected one of --subscription and --topic"),
        (["--topic=transactions"], "--topic: expected projects/PROJECT/topics/TOPIC, got 'transactions'"),
        (
            ["--subscription=projects/p/topics/t"],
            "--subscription: expected projects/PROJECT/subscriptions/SUBSCRIPTION, got",
        ),
        (
            ["--subscription=projects/p/subscriptions/x"],
            "PROJECT 'p' has 1 character, expected 6 to 30; SUBSCRIPTION 'x' has 1 character, expected 3",
        ),
        (
            [SUBSCRIPTION, "--topic=projects/my-project/topics/t12", "--model=m", DATASET],
            "expected one of --subscription and --topic",
        ),
        ([SUBSCRIPTION, DATASET], "the following arguments are required: --model"),
        (
            [SUBSCRIPTION, "--model=m", DATASET, "--subscriptoin=x"],
            "unknown option --subscriptoin; did you mean --subs",
        ),
        ([SUBSCRIPTION, "--model=m", DATASET, "--reigon=x"], "unknown option --reigon; did you mean --reg"),
        ([SUBSCRIPTION, "--model=m"], "the following arguments are required: --output_dataset"),
        ([SUBSCRIPTION, "--model=m", DATASET, "--output=o"], "unknown option --output; did you mean"),
        ([SUBSCRIPTION, "--model=m", "--output_dataset=anomaly"], "expected PROJECT.DATASET, got 'anomaly'"),
        (
            [SUBSCRIPTION, "--model=m", f"{DATASET}.scores"],
            ".scores' has '.', expected letters, digits and _",
        ),
        (
            [SUBSCRIPTION, "--model=m", DATASET, "--batch_rows=0"],
            "--batch_rows: expected a whole number of at least 1, got '0'",
        ),
        (
            [SUBSCRIPTION, "--model=m", DATASET, "--batch_rows=many"],
            "--batch_rows: expected a whole number of at least 1, got 'many'",
        ),
        ([SUBSCRIPTION, "--model=m", DATASET, "--runner=FnApiRunner"], "reads no Pub/Sub"),
        (
            [SUBSCRIPTION, "--model=m", DATASET, "--write_method=file_loads"],
            "pass --temp_location=gs://BUCKET",
        ),
        (
            [SUBSCRIPTION, "--model=m", DATASET, "--bigquery_endpoint=http://10.0.0.1"],
            "credentials would travel in clear text",
        ),
        (
            [
                SUBSCRIPTION,
                "--model=m",
                DATASET,
                "--write_method=file_loads",
                "--temp_location=gs://b/tmp",
                "--bigquery_storage_endpoint=localhost:1",
            ],
            "is Beam's own connector, which takes no --bigquery_storage_endpoint",
        ),
        (
            [
                SUBSCRIPTION,
                "--model=m",
                DATASET,
                "--write_method=storage_write_api",
                "--bigquery_endpoint=http://127.0.0.1:1",
            ],
            "is Beam's own connector, which takes no --bigquery_endpoint",
        ),
        (
            [SUBSCRIPTION, "--model=/nowhere", DATASET],
            "--model: No manifest.json in /nowhere; train a model with anomaly train",
        ),
        ([SUBSCRIPTION, "--model=m", DATASET, "stray"], "unknown option stray"),
    ],
)
def test_streaming_refuses(argv, reason, capsys):
    assert reason in refused(streaming, argv, capsys)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--model=m"], "expected one of --input, --input_table and --input_query"),
        (["--input=x.bin", "--model=m", "--output=o"], "--input=x.bin: no such file"),
        (["--input_table=d.t", "--model=m"], "expected PROJECT.DATASET.TABLE, got 'd.t'"),
        (["--input=x.jsonl", "--model=m", "--output=o", "--row_filter=Amount>1"], "goes with --input_table"),
        (["--input=x.jsonl", "--model=m"], "scores need a place to go"),
        (
            ["--input=x.jsonl", "--model=m", "--output=o", "--max_event_age_days=0"],
            "expected a whole number from 1 to 3652058",
        ),
        (
            ["--input=x.jsonl", "--model=m", "--output=o", "--max_event_age_days=9999999"],
            "to 3652058, got '9999999'",
        ),
        (["--input=none-*.jsonl", "--model=m", "--output=o"], "--input=none-*.jsonl: no such file"),
        (
            ["--input=x.jsonl", "--model=m", "--output=o", "--write_method=file_loads"],
            "--write_method=file_loads writes tables: pass --output_dataset as well",
        ),
    ],
)
def test_batch_refuses(argv, reason, capsys, lines):
    assert reason in refused(batch, argv, capsys)


def test_what_is_written_in_java_needs_java(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    argv = [SUBSCRIPTION, "--model=m", DATASET, "--write_method=storage_write_api"]
    assert "install Java 11 or newer, or use storage_arrow" in refused(streaming, argv, capsys)


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """A directory to work in that has the file x.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").touch()


@pytest.mark.parametrize(
    ("thresholds", "reason"),
    [
        (
            ["--medium_threshold=9", "--high_threshold=8"],
            "--medium_threshold=9.0 is above --high_threshold=8.0",
        ),
        (["--medium_threshold=nan"], "--medium_threshold: expected a number, got 'nan'"),
        (["--high_threshold=many"], "--high_threshold: expected a number, got 'many'"),
    ],
)
def test_thresholds_must_ascend(thresholds, reason, model_dir, capsys, lines):
    argv = ["--input=x.jsonl", f"--model={model_dir}", "--output=o", *thresholds]
    assert reason in refused(batch, argv, capsys)


def test_thresholds_given_replace_the_manifests(model_dir, lines):
    argv = ["--input=x.jsonl", f"--model={model_dir}", "--output=o", "--high_threshold=1e9"]
    options, _ = batch.parse(argv)
    manifest = options.detection.manifest()
    assert manifest.thresholds["high"] == 1e9
    assert manifest.thresholds["medium"] < 1e9


def test_a_model_of_another_sha256_than_the_one_given_is_refused(model_dir, lines, capsys):
    digest = hashlib.sha256((model_dir / "manifest.json").read_bytes()).hexdigest()
    argv = ["--input=x.jsonl", f"--model={model_dir}", "--output=o"]
    options, _ = batch.parse([*argv, f"--model_sha256={digest}"])
    assert options.detection.manifest().digest == digest
    other = f"{int(digest, 16) ^ 1:064x}"
    expected = (
        f"--model_sha256: expected {other} of manifest.json in {model_dir}, got {digest}: put the released"
    )
    assert expected in refused(batch, [*argv, f"--model_sha256={other}"], capsys)
    assert "argument --model_sha256: " in refused(batch, [*argv, "--model_sha256=abc"], capsys)
    follow = [SUBSCRIPTION, "--model=m", DATASET, f"--model_sha256={digest}", "--model_refresh_seconds=60"]
    assert "--model_sha256: it holds the job to one model" in refused(streaming, follow, capsys)


def test_flags_of_beam_reach_beam_and_runners_are_named():
    argv = [SUBSCRIPTION, "--model=m", DATASET, "--project=my-project", "--region=europe-west1"]
    _, beam_options = streaming.parse(argv)
    assert beam_options.view_as(GoogleCloudOptions).region == "europe-west1"
    assert wiring.set_runner(beam_options, streaming.LOCAL_RUNNER) == streaming.LOCAL_RUNNER
    assert beam_options.view_as(StandardOptions).runner == streaming.LOCAL_RUNNER
    _, beam_options = streaming.parse([*argv, "--runner=DataflowRunner"])
    assert wiring.set_runner(beam_options, streaming.LOCAL_RUNNER) == "DataflowRunner"


def test_a_check_changes_nothing(monkeypatch):
    monkeypatch.setenv(clients.REST_VARIABLE, "http://127.0.0.1:1")
    monkeypatch.setenv(clients.STORAGE_VARIABLE, "127.0.0.1:2")
    options, beam_options = streaming.parse([SUBSCRIPTION, "--model=m", DATASET])
    before = copy.deepcopy((options, beam_options.get_all_options()))
    streaming.check(options, beam_options)
    completed = wiring.with_environment(options, beam_options)
    assert (options, beam_options.get_all_options()) == before
    assert completed.endpoints.bigquery_endpoint == "http://127.0.0.1:1"


def test_a_threshold_that_is_not_a_number_is_refused_from_python_as_well():
    with pytest.raises(OptionError, match="--high_threshold: expected a number such as"):
        DetectionOptions(model="m", high_threshold=float("nan"))


@pytest.mark.parametrize("module", [batch, streaming])
def test_help_documents_every_option_with_an_example(module):
    parser = module.parser()
    text = parser.format_help()
    assert "example" in text
    for action in parser._actions:
        assert action.help, action.dest
        assert action.option_strings[-1] in text
