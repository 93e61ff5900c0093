import re
from pathlib import Path

import pytest

from model.serving.torchserve import archives
from model.serving.torchserve.__main__ import main
from model.serving.torchserve.config import (
    Layout,
    Ports,
    TorchServeError,
    profile_path,
    read_properties,
    render,
    tokens_off,
)
from model.serving.torchserve.management import Server

LAYOUT = Layout(Path("/srv/ts"))


def rendered(profile: str, tmp_path: Path, **changes) -> dict[str, str]:
    properties = {**read_properties(profile_path(profile)), **changes}
    path = tmp_path / "config.properties"
    path.write_text(render(properties, LAYOUT, Ports(), ["a.mar", "b.mar"], 3))
    return read_properties(path)


def test_local_binds_to_loopback_and_needs_no_token(tmp_path):
    values = rendered("local", tmp_path)
    addresses = [value for key, value in values.items() if key.endswith("_address")]
    assert len(addresses) == 5
    assert all("127.0.0.1" in address for address in addresses)
    assert values["disable_token_authorization"] == "true"


def test_cloud_opens_inference_keeps_management_local_and_tokens_on(tmp_path):
    values = rendered("cloud", tmp_path)
    assert values["inference_address"] == "http://0.0.0.0:8080"
    assert values["grpc_inference_address"] == "0.0.0.0"
    assert values["management_address"] == "http://127.0.0.1:8081"
    assert values["grpc_management_address"] == "127.0.0.1"
    assert values["disable_token_authorization"] == "false"


@pytest.mark.parametrize("profile", ["local", "cloud"])
def test_both_serve_prometheus_metrics_and_restrict_urls(profile, tmp_path):
    values = rendered(profile, tmp_path)
    assert values["metrics_mode"] == "prometheus"
    assert values["enable_model_api"] == "true"
    assert values["load_models"] == "a.mar,b.mar"
    assert values["default_workers_per_model"] == "3"
    assert "service_envelope" not in values, "the json envelope breaks gRPC"
    # The file escapes backslashes, as Java reads them.
    pattern = values["allowed_urls"].replace("\\\\", "\\")
    assert re.fullmatch(pattern, "file:///srv/ts/model_store/x.mar")
    assert not re.fullmatch(pattern, "file:///etc/x.mar")
    # TorchServe decodes the URL after it has matched it.
    for outside in ("../x.mar", "%2e%2e/x.mar", "%2E%2E%2Fx.mar", "a/x.mar", ".x.mar", "x"):
        assert not re.fullmatch(pattern, f"file:///srv/ts/model_store/{outside}")
    assert not re.fullmatch(pattern, "https://example.com/x.mar")


@pytest.mark.parametrize("key", ["host", "management_host"])
@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "server.example"])
def test_tokens_cannot_be_turned_off_outside_loopback(key, host, tmp_path):
    with pytest.raises(TorchServeError, match=f"{key}={re.escape(host)} can be reached"):
        rendered("local", tmp_path, **{key: host})


@pytest.mark.parametrize("value", ["True", "TRUE", " true "])
def test_tokens_are_off_however_true_is_written(value, tmp_path):
    with pytest.raises(TorchServeError, match=r"host=0\.0\.0\.0 can be reached"):
        rendered("cloud", tmp_path, disable_token_authorization=value)
    actual = rendered("local", tmp_path, disable_token_authorization=value)
    assert actual["disable_token_authorization"] == "true"
    assert tokens_off({"disable_token_authorization": value})


@pytest.mark.parametrize("value", ["yes", "1", ""])
def test_tokens_are_neither_on_nor_off_by_another_word(value, tmp_path):
    with pytest.raises(TorchServeError, match=r"disable_token_authorization: expected true or false, got "):
        rendered("local", tmp_path, disable_token_authorization=value)


def test_a_key_that_java_would_read_as_another_is_refused(tmp_path):
    path = tmp_path / "x.properties"
    path.write_text("host=0.0.0.0\ndisable\\_token_authorization=true\n")
    with pytest.raises(TorchServeError, match=r"x\.properties:2: expected key=value"):
        read_properties(path)


@pytest.mark.parametrize(
    "changes", [{"private_key_file": "k.pem", "certificate_file": "c.pem"}, {"keystore": "keys.p12"}]
)
def test_with_a_certificate_what_others_reach_is_https(changes, tmp_path):
    values = rendered("cloud", tmp_path, **changes)
    assert values["inference_address"] == "https://0.0.0.0:8080"
    assert values["metrics_address"] == "https://0.0.0.0:8082"
    assert values["management_address"] == "http://127.0.0.1:8081"
    values = rendered("cloud", tmp_path, management_host="10.0.0.7", **changes)
    assert values["management_address"] == "https://10.0.0.7:8081"


@pytest.mark.parametrize("key", ["private_key_file", "certificate_file"])
def test_half_a_certificate_is_refused(key, tmp_path):
    with pytest.raises(TorchServeError, match="private_key_file and certificate_file go together"):
        rendered("cloud", tmp_path, **{key: "x.pem"})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("inference_address", "host= or --host, and --inference_port"),
        ("management_address", "--management_port"),
        ("metrics_address", "--metrics_port"),
        ("grpc_inference_address", "host= or --host"),
        ("grpc_management_port", "--grpc_management_port"),
    ],
)
def test_an_address_in_the_file_is_refused_with_what_to_give_instead(key, text, tmp_path):
    with pytest.raises(TorchServeError, match=f"{key}=x: leave it out.*{text}"):
        rendered("local", tmp_path, **{key: "x"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_any_loopback_address_may_go_without_tokens(host, tmp_path):
    assert host in rendered("local", tmp_path, host=host)["inference_address"]


@pytest.mark.parametrize("pattern", ["https://(", "https://a,b/.*"])
def test_a_wrong_url_pattern_is_refused(pattern):
    with pytest.raises(TorchServeError, match="allowed_urls"):
        render({}, LAYOUT, Ports(), [], 1, [pattern])


def test_a_line_that_is_no_property_is_named_with_its_number(tmp_path):
    path = tmp_path / "x.properties"
    path.write_text("# fine\na=1\nnonsense\n")
    with pytest.raises(TorchServeError, match=r"x\.properties:3: .*nonsense"):
        read_properties(path)


def test_a_missing_profile_is_named(tmp_path):
    with pytest.raises(TorchServeError, match="--config: expected local, cloud or"):
        read_properties(profile_path(str(tmp_path / "none.properties")))


def test_a_run_directory_too_deep_for_sockets_is_refused(tmp_path):
    with pytest.raises(TorchServeError, match="too long for Unix sockets"):
        Layout(tmp_path / ("x" * 120)).prepare()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"inference": {}}'])
def test_a_key_file_without_the_key_is_named(text, tmp_path):
    path = tmp_path / "key_file.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TorchServeError, match=r"key_file\.json with a key of kind inference"):
        Server("", "", "", "", path).key("inference")


def test_an_archive_goes_into_the_store_under_its_own_name(tmp_path):
    layout = Layout(tmp_path / "run")
    layout.prepare()
    (tmp_path / "m.mar").write_bytes(b"archive")
    assert archives.add_archive(str(tmp_path / "m.mar"), layout) == "m.mar"
    assert (layout.model_store / "m.mar").read_bytes() == b"archive"
    with pytest.raises(TorchServeError, match="no such archive"):
        archives.add_archive(str(tmp_path / "other.mar"), layout)


def test_a_directory_with_an_archive_alone_says_to_pass_the_archive(tmp_path):
    layout = Layout(tmp_path / "run")
    layout.prepare()
    (tmp_path / "model.mar").write_bytes(b"archive")
    with pytest.raises(
        TorchServeError, match=rf"--model {tmp_path}: has model\.mar and no manifest\.json"
    ) as refused:
        archives.add_archive(str(tmp_path), layout)
    assert str(refused.value).endswith(f"--model {tmp_path}/model.mar")


REMOTE = ["--management", "http://127.0.0.1:9", "--inference", "http://127.0.0.1:9/"]


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [
        (["predict", *REMOTE, "--input", "nowhere.json"], 1, "got 'nowhere.json': No such file"),
        (
            ["predict", *REMOTE, "--input", "REQUEST"],
            1,
            "http://127.0.0.1:9/predictions/pytorch_autoencoder: no",
        ),
        (["predict", *REMOTE[2:], "--input", "REQUEST"], 1, "is TorchServe running there?"),
        (["predict", *REMOTE[:2], "--input", "REQUEST"], 2, "--inference: expected the address"),
        (["predict", *REMOTE, "--grpc", "--input", "REQUEST"], 2, "--grpc_address: expected the address"),
        (["status", "--key_file", "k"], 2, "--management: expected the address of a server elsewhere"),
        (["status", *REMOTE[:2]], 1, "http://127.0.0.1:9/models: no answer"),
    ],
)
def test_a_command_that_reaches_no_server_names_the_flag(command, status, text, tmp_path, capsys):
    request = tmp_path / "request.json"
    request.write_text('{"instances": []}')
    flags = [str(request) if word == "REQUEST" else word for word in command]
    assert main([*flags, "--run_dir", str(tmp_path)]) == status
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert text in shown


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--workers", "0"], "--workers: expected a whole number of at least 1"),  # it would never be ready
        (["--workers", "two"], "--workers: expected a whole number of at least 1"),
        (["--metrics_port", "65536"], "--metrics_port: expected a whole number from 1 to 65535"),
        (["--timeout", "0"], "--timeout: expected a number of at least 1"),
    ],
)
def test_a_number_that_cannot_be_is_refused(flags, text, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["start", "--model", "m", *flags])
    assert ended.value.code == 2
    assert f"argument {text}" in capsys.readouterr().err
