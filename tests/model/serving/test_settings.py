import pytest

from model.serving.settings import Settings, SettingsError, usable_cores


def test_defaults():
    settings = Settings.from_env({"AIP_STORAGE_URI": "gs://bucket/model"})
    assert settings == Settings(
        "gs://bucket/model", 8080, "/health", "/predict", 10_000_000, workers=usable_cores()
    )


def test_every_variable_is_obeyed_and_written_back():
    env = {
        "AIP_STORAGE_URI": "out/model",
        "AIP_HTTP_PORT": "9000",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
        "MAX_BODY_BYTES": "1500000",
        "WEB_CONCURRENCY": "3",
    }
    settings = Settings.from_env(env)
    assert settings.to_env() == env
    assert (settings.port, settings.workers, settings.max_body_bytes) == (9000, 3, 1_500_000)


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
    ],
)
def test_a_wrong_value_names_its_variable(name, value):
    with pytest.raises(SettingsError, match=name):
        Settings.from_env({"AIP_STORAGE_URI": "out/model", name: value})
