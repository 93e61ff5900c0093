"""Options are checked before anything runs, and the message says what to do."""

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, StandardOptions

from pipelines import batch, streaming

SUBSCRIPTION = "--subscription=projects/my-project/subscriptions/transactions"
DATASET = "--output_dataset=my-project.anomaly"


def launch(module, argv):
    parser = module.parser()
    args, beam_options = parser.parse(argv)
    return module.check(parser, args, beam_options)


def refused(module, argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        launch(module, argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--model=m", DATASET], "one of the arguments --subscription --topic is required"),
        (["--topic=transactions"], "--topic: expected projects/PROJECT/topics/TOPIC, got 'transactions'"),
        (["--subscription=projects/p/topics/t"], "expected projects/PROJECT/subscriptions/SUBSCRIPTION, got"),
        (
            ["--subscription=projects/p/subscriptions/x"],
            "PROJECT 'p' has 1 character, expected 6 to 30; SUBSCRIPTION 'x' has 1 character, expected 3",
        ),
        ([SUBSCRIPTION, "--topic=projects/my-project/topics/t12"], "not allowed with argument"),
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
        ([SUBSCRIPTION, "--model=m", DATASET, "--batch_rows=0"], "--batch_rows: 0 is below 1"),
        ([SUBSCRIPTION, "--model=m", DATASET, "--batch_rows=many"], "'many' is not a whole number"),
        ([SUBSCRIPTION, "--model=m", DATASET, "--runner=FnApiRunner"], "reads no Pub/Sub"),
        (
            [SUBSCRIPTION, "--model=m", DATASET, "--write_method=file_loads"],
            "give --temp_location=gs://BUCKET",
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
                "--write_method=streaming_inserts",
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
            "--model: No manifest.json in /nowhere; train a model with python -m model.train",
        ),
        ([SUBSCRIPTION, "--model=m", DATASET, "stray"], "unknown option stray"),
    ],
)
def test_streaming_refuses(argv, reason, capsys):
    assert reason in refused(streaming, argv, capsys)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--model=m"], "one of the arguments --input --input_table --input_query is required"),
        (["--input=x.csv", "--model=m", "--output=o"], "cannot tell the format; give --input_format"),
        (["--input_table=d.t", "--model=m"], "expected PROJECT.DATASET.TABLE, got 'd.t'"),
        (["--input=x.jsonl", "--model=m", "--output=o", "--row_filter=Amount>1"], "goes with --input_table"),
        (["--input=x.jsonl", "--model=m"], "scores need a place to go"),
        (["--input=x.jsonl", "--model=m", "--output=o", "--max_event_age_days=0"], "0 is below 1"),
        (["--input=x.jsonl", "--model=m", "--output=o", "--max_event_age_days=9999999"], "is above 3652058"),
        (["--input=none-*.jsonl", "--model=m", "--output=o"], "--input=none-*.jsonl: no such file"),
        (
            ["--input=x.jsonl", "--model=m", "--output=o", "--write_method=file_loads"],
            "--write_method=file_loads writes tables: give --output_dataset as well",
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
        (["--medium_threshold=nan"], "--medium_threshold: nan is no number"),
        (["--high_threshold=many"], "--high_threshold: invalid float value: 'many'"),
    ],
)
def test_thresholds_must_ascend(thresholds, reason, model_dir, capsys, lines):
    argv = ["--input=x.jsonl", f"--model={model_dir}", "--output=o", *thresholds]
    assert reason in refused(batch, argv, capsys)


def test_thresholds_given_replace_the_manifests(model_dir, lines):
    parser = batch.parser()
    argv = ["--input=x.jsonl", f"--model={model_dir}", "--output=o", "--high_threshold=1e9"]
    args, beam_options = parser.parse(argv)
    manifest = batch.check(parser, args, beam_options)
    assert manifest.thresholds["high"] == 1e9
    assert manifest.thresholds["medium"] < 1e9


def test_flags_of_beam_reach_beam_and_runners_are_named(model_dir, lines):
    parser = streaming.parser()
    argv = [SUBSCRIPTION, f"--model={model_dir}", DATASET, "--project=my-project", "--region=europe-west1"]
    args, beam_options = parser.parse(argv)
    streaming.check(parser, args, beam_options)
    assert beam_options.view_as(GoogleCloudOptions).region == "europe-west1"
    assert beam_options.view_as(StandardOptions).runner == streaming.LOCAL_RUNNER
    parser = batch.parser()
    args, beam_options = parser.parse(["--input=x.jsonl", f"--model={model_dir}", "--output=o"])
    batch.check(parser, args, beam_options)
    assert beam_options.view_as(StandardOptions).runner == "FnApiRunner"


@pytest.mark.parametrize("module", [batch, streaming])
def test_help_documents_every_option_with_an_example(module):
    parser = module.parser()
    text = parser.format_help()
    assert "example" in text
    for action in parser._actions:
        assert action.help, action.dest
        assert action.option_strings[-1] in text
