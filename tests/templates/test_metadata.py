"""The templates' metadata: from the options and back, and what the schema refuses."""

from __future__ import annotations

import argparse
import copy
import json
import re

import pytest
from google.cloud.dataflow_v1beta3.types import (
    ContainerSpec,
    FlexTemplateRuntimeEnvironment,
    TemplateMetadata,
)
from google.protobuf import json_format

from cloud import launch
from cloud.resources.declared import Names
from pipelines import batch, streaming
from templates import build, main, metadata, spec

NAMES = Names("my-project")
PIPELINES = tuple(metadata.PARSERS)
IMAGE = "us-central1-docker.pkg.dev/my-project/anomaly/pipelines:v1"


def declared_options(pipeline: str) -> dict[str, argparse.Action]:
    """The options by name, without those of a job on this machine."""
    every = {action.dest: action for _, action in metadata.declared(metadata.PARSERS[pipeline]())}
    return {name: action for name, action in every.items() if name not in ("help", "processes")}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_files_are_what_the_options_say(pipeline):
    committed = metadata.path(pipeline).read_text(encoding="utf-8")
    assert committed == metadata.text(pipeline), "run python -m templates.metadata"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_option_is_a_parameter_and_every_parameter_an_option(pipeline):
    parameters = {p["name"]: p for p in json.loads(metadata.path(pipeline).read_text())["parameters"]}
    declared = declared_options(pipeline)
    assert set(parameters) == set(declared)
    for name, action in declared.items():
        parameter = parameters[name]
        assert parameter["isOptional"] is not action.required
        # Java is not in the image.
        choices = [str(c) for c in action.choices or () if c != "storage_write_api"]
        assert [o["value"] for o in parameter.get("enumOptions", ())] == choices
        if action.default is None:
            assert "defaultValue" not in parameter
        elif not isinstance(action.default, bool):
            # What the form shows as the default, the command line reads as the default.
            convert = action.type or str
            assert convert(parameter["defaultValue"]) == action.default


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_value_that_the_form_takes_the_command_line_takes_and_none_else(pipeline):
    samples = [
        "projects/my-project/topics/alerts",
        "projects/my-project/subscriptions/transactions",
        "projects/my-project/topics/",
        "my-project.anomaly",
        "my-project.anomaly.scores",
        "anomaly",
        "12",
        "-1",
        "1.5",
        "10m",
        "0s",
    ]
    parameters = {p["name"]: p for p in metadata.metadata(pipeline)["parameters"]}
    compared = 0
    for name, action in declared_options(pipeline).items():
        if action.type is None or parameters[name]["paramType"].startswith("GCS"):
            continue
        for sample in samples:
            try:
                action.type(sample)
                taken = True
            except (argparse.ArgumentTypeError, ValueError):
                taken = False
            by_form = all(re.fullmatch(regex, sample) for regex in parameters[name]["regexes"])
            if by_form != taken:
                # The form knows no ranges.
                assert parameters[name]["paramType"] == "NUMBER"
                most = float("inf") if action.type.most is None else action.type.most
                assert not action.type.least <= float(sample) <= most
            compared += 1
    assert compared > 20


def test_parameters_have_the_types_that_the_console_draws():
    types = {p["name"]: p["paramType"] for p in metadata.metadata("streaming")["parameters"]}
    assert types["subscription"] == "PUBSUB_SUBSCRIPTION"
    assert types["alert_topic"] == "PUBSUB_TOPIC"
    assert types["model"] == "GCS_READ_FOLDER"
    assert types["batch_rows"] == "NUMBER"
    assert types["create_tables"] == "BOOLEAN"
    assert types["min_severity"] == "ENUM"


def valid() -> dict:
    return copy.deepcopy(metadata.metadata("streaming"))


def broken(change) -> dict:
    changed = valid()
    change(changed, {p["name"]: p for p in changed["parameters"]})
    return changed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda m, p: p["topic"].update(paramType="PUBSUB"),
            r"topic: paramType 'PUBSUB' is not one of",
        ),
        (lambda m, p: p["topic"].update(regexes=["^(a$"]), r"parameter topic: regex '\^\(a\$' is broken"),
        (lambda m, p: p["topic"].update(regexes=["a"]), r"parameter topic: regexes.0 'a' does not match"),
        (lambda m, p: p["topic"].update(help="x"), r"parameter topic: .*'help' was unexpected"),
        (lambda m, p: p["topic"].pop("helpText"), r"parameter topic: 'helpText' is a required property"),
        (lambda m, p: p["topic"].update(name="batch_rows"), r"parameter batch_rows is declared twice"),
        (lambda m, p: p["batch_rows"].update(defaultValue="many"), r"the default 'many' does not match"),
        (
            lambda m, p: p["min_severity"].update(defaultValue="low"),
            r"default .low. is not one of medium, high",
        ),
        (lambda m, p: p["min_severity"].pop("enumOptions"), r"enumOptions go with paramType ENUM"),
        (lambda m, p: p["topic"].update(parentTriggerValues=["x"]), r"'parentName' is a dependency"),
        (lambda m, p: m.update(defaultStreamingMode="SOMETIMES"), r"defaultStreamingMode 'SOMETIMES'"),
        (lambda m, p: m.pop("supportsAtLeastOnce"), r"'supportsAtLeastOnce' is a required property"),
        (lambda m, p: m.update(streaming=False), r"metadata: "),
        (lambda m, p: m.update(streeming=True), r"'streeming' was unexpected"),
    ],
)
def test_what_gcloud_would_take_without_a_word_is_refused(change, reason):
    metadata.validate(valid())
    with pytest.raises(metadata.MetadataError, match=reason):
        metadata.validate(broken(change))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_spec_keeps_every_field_through_dataflows_own_message(pipeline):
    written = json.loads(spec.text(pipeline, IMAGE, NAMES))
    message = json_format.ParseDict(written, ContainerSpec.pb(ContainerSpec()))
    assert json_format.MessageToDict(message)["metadata"]["parameters"] == [
        {key: value for key, value in parameter.items() if value not in (False, "TEXT")} | _named(parameter)
        for parameter in written["metadata"]["parameters"]
    ]
    assert message.image == message.default_environment.sdk_container_image == IMAGE
    described = TemplateMetadata.wrap(message.metadata)
    assert described.streaming is (pipeline == "streaming")
    assert described.supports_at_least_once is (pipeline == "streaming")
    assert described.default_streaming_mode == ("AT_LEAST_ONCE" if pipeline == "streaming" else "")


def test_a_job_that_another_tool_launches_has_the_environment_of_anomaly_launch(capsys):
    names = Names("my-project", "europe-west1", prefix="test-")
    for pipeline, flags in (("streaming", []), ("batch", ["--input=gs://b-1/x.parquet"])):
        place = ["--project=my-project", "--region=europe-west1", "--prefix=test-"]
        assert launch.main([pipeline, *place, *flags, "--dry_run"]) == 0
        launched = json.loads(capsys.readouterr().out)["environment"]
        del launched["additionalUserLabels"]["anomaly_dataset"]  # which follows from a parameter
        written = json.loads(spec.text(pipeline, IMAGE, names))["defaultEnvironment"]
        assert written.pop("sdkContainerImage") == IMAGE  # the spec's own for a launch
        environment = FlexTemplateRuntimeEnvironment.pb(FlexTemplateRuntimeEnvironment())
        assert json_format.ParseDict(written, copy.copy(environment)) == json_format.ParseDict(
            launched, copy.copy(environment)
        )


def _named(parameter: dict) -> dict:
    # TEXT is 1, not 0, and so is written.
    return {"paramType": parameter["paramType"]}


@pytest.mark.parametrize("image", ["", "pipelines", "HOST/x:1", "a/b", "a/b:", "a b/c:1"])
def test_an_image_without_a_tag_is_refused(image):
    with pytest.raises(spec.SpecError, match="--image: expected HOST/PATH:TAG"):
        spec.container_spec("batch", image, NAMES)


def test_build_offline_writes_both_specs(tmp_path, capsys):
    assert build.main(["--project=my-project", "--tag=v1", f"--offline={tmp_path / 'specs'}"]) == 0
    specs = {path.name: json.loads(path.read_text()) for path in (tmp_path / "specs").iterdir()}
    assert set(specs) == {"streaming.json", "batch.json"}
    assert specs["batch.json"]["image"] == IMAGE
    assert capsys.readouterr().out.count("Wrote") == 2


# What the launcher in the image runs


def test_the_parameters_tell_the_pipeline():
    assert main.pipeline_of(["--model=gs://b/m", "--topic=projects/p/topics/t"]) is streaming
    assert main.pipeline_of(["--subscription=projects/p/subscriptions/t"]) is streaming
    assert main.pipeline_of(["--input=gs://b/topic", "--subscription=", "--topics=x"]) is batch


def test_parameters_without_a_source_are_told_of_both_templates(capsys):
    assert main.main(["--model=gs://b/m", "--output_dataset=my-project.anomaly", "--subscription="]) == 2
    assert capsys.readouterr().err == (
        "error: the template's parameters: expected a source, subscription or topic for the streaming "
        "template; input or input_table or input_query for the batch template, got none\n"
    )


def test_a_flag_of_a_newer_launcher_is_left_out_with_a_warning(caplog):
    kept = ["--topic=projects/p/topics/t", "--runner=DataflowRunner", "--update"]
    argv = [*kept[:2], "--new_in_2030=1", "--newer", "2", *kept[2:]]
    assert main.without_unknown(streaming.parser(), argv) == kept
    warnings = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert warnings == ["--new_in_2030", "--newer"]


def test_parameters_become_a_command_line_that_the_pipeline_reads_alike():
    parser = metadata.PARSERS["streaming"]()
    argv = [
        "--subscription=projects/my-project/subscriptions/transactions",
        "--model=gs://b/m",
        "--output_dataset=my-project.anomaly",
        "--topic=",
        "--create_tables=False",
        "--batch_rows=7",
        "--runner=DataflowRunner",
    ]
    options, beam_options = streaming.parse(main.command_line(parser, argv))
    assert (options.tables.create_tables, options.source.batch_rows, options.source.topic) == (False, 7, None)
    assert beam_options.get_all_options()["runner"] == "DataflowRunner"
    options, _ = streaming.parse(main.command_line(parser, [*argv[:3], "--create_tables=true"]))
    assert options.tables.create_tables is True


def test_a_switch_with_another_value_is_refused(capsys):
    assert main.main(["--create_tables=maybe", "--topic=projects/p/topics/t"]) == 2
    assert capsys.readouterr().err == "error: --create_tables: expected true or false, got 'maybe'\n"
