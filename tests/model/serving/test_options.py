import pytest

from common.options import OptionError
from model.serving.options import ServerOptions, cpu_quota, usable_cores


def test_defaults():
    options = ServerOptions.from_env({"AIP_STORAGE_URI": "gs://bucket/model"})
    assert options == ServerOptions(
        "gs://bucket/model", 8080, "/health", "/predict", 10_000_000, workers=usable_cores()
    )


def test_every_variable_is_obeyed_and_written_back():
    env = {
        "AIP_STORAGE_URI": "out/model",
        "AIP_HTTP_PORT": "9000",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
        "MAX_BODY_BYTES": "1500000",
        "MAX_ANSWER_BYTES": "64000000",
        "CLIENT_SECONDS": "30",
        "LAME_DUCK_SECONDS": "5",
        "WEB_CONCURRENCY": "3",
        "MAX_ROWS": "20000",
        "MAX_WAIT_MILLIS": "500",
        "ACCESS_LOG": "1",
        "REQUEST_ID": "0",
        "MODEL_REFRESH_SECONDS": "60",
    }
    options = ServerOptions.from_env(env)
    assert options.to_env() == env
    assert (options.port, options.workers, options.max_body_bytes) == (9000, 3, 1_500_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AIP_STORAGE_URI", ""),
        ("AIP_HTTP_PORT", "http"),
        ("AIP_HTTP_PORT", "70000"),
        ("AIP_HTTP_PORT", "-1"),
        ("AIP_HEALTH_ROUTE", "health"),
        ("AIP_PREDICT_ROUTE", "/health"),
        ("MAX_BODY_BYTES", "1e6"),
        ("WEB_CONCURRENCY", "0"),
        ("MAX_ROWS", "0"),
        ("MAX_WAIT_MILLIS", "soon"),
        ("ACCESS_LOG", "true"),
    ],
)
def test_a_wrong_value_names_its_variable(name, value):
    with pytest.raises(OptionError, match=name):
        ServerOptions.from_env({"AIP_STORAGE_URI": "out/model", name: value})


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 2),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "10000 100000"}, "0::/", 1),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 3),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 100000"}, "0::/a/b", 1),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/docker/x", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", None),
        ({"cpu/d/cpu.cfs_quota_us": "50000", "cpu/d/cpu.cfs_period_us": "100000"}, "4:cpu:/d\n3:pids:/d", 1),
        ({}, None, None),
    ],
)
def test_a_quota_of_the_control_group_counts_in_whole_cores(files, own, cores, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    groups = tmp_path / "own"
    if own is not None:
        groups.write_text(own + "\n")
    assert cpu_quota(tmp_path, groups) == cores


def test_there_is_always_a_core():
    assert usable_cores() >= 1
