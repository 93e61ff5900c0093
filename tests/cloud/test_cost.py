"""The arithmetic of `anomaly cost`, beside values that were computed by hand."""

import json

import pytest

from cloud.cost import Assumed, CostOptions, Measured, Prices, estimate, main
from common.prices import load_prices

PRICES = Prices(
    price_batch_vcpu_hour=0.06,
    price_streaming_vcpu_hour=0.07,
    price_memory_gb_hour=0.004,
    price_disk_gb_hour=0.0001,
    price_shuffle_gb=0.01,
    price_streaming_engine_gb=0.02,
    price_compute_unit_hour=0.09,
    price_pubsub_tib=40.0,
    price_topic_gib_month=0.27,
    price_write_gib=0.025,
    price_table_gib_month=0.02,
    price_storage_gib_month=0.02,
    price_operation=0.000005,
    price_image_gib_month=0.1,
)
MEASURED = Measured(batch_rate=100_000, stream_rate=20_000, message_bytes=440, row_bytes=1024, file_bytes=84)
ASSUMED = Assumed(
    worker_share=0.25,
    utilisation=0.5,
    vcpus=2,
    memory_gb=8,
    batch_disk_gb=25,
    streaming_disk_gb=30,
    shuffled_bytes=400,
    units_a_million=2,
    units_idle=0.5,
    message_overhead=60,
    subscriptions=1,
    topic_days=3,
    kept_months=2,
    operations_a_share=10,
)


def dollars(of, **changes):
    options = CostOptions(MEASURED, Assumed(**{**vars(ASSUMED), **changes}), PRICES)
    return {line.item: line.dollars for line in estimate(options) if line.of == of}


def test_a_million_transactions_in_batch():
    # 1,000,000 / (100,000 * 0.25) = 40 vCPU seconds; 20 seconds of a worker of 2 vCPUs.
    assert dollars("batch") == pytest.approx(
        {
            "workers: vCPU": 40 / 3600 * 0.06,
            "workers: memory": 20 / 3600 * 8 * 0.004,
            "workers: disk": 20 / 3600 * 25 * 0.0001,
            "Dataflow Shuffle": 0.4 * 0.01,  # 400 bytes a row are 0.4 GB
            "Cloud Storage: files": 524_000_000 / 1_073_741_824 * 2 * 0.02,  # 440 + 84 bytes, two months
            "Cloud Storage: operations": 440_000_000 / 33_554_432 * 10 * 0.000005,
            "BigQuery: Storage Write API": 1_000_000 / 1_048_576 * 0.025,  # a KiB a row
            "BigQuery: storage": 1_000_000 / 1_048_576 * 2 * 0.02,
        }
    )


def test_a_million_transactions_streamed():
    # 1,000,000 / (20,000 * 0.25) = 200 vCPU seconds in use, so 400 billed; 200 seconds of a worker.
    assert dollars("streaming") == pytest.approx(
        {
            "workers: vCPU": 400 / 3600 * 0.07,
            "workers: memory": 200 / 3600 * 8 * 0.004,
            "workers: disk": 200 / 3600 * 30 * 0.0001,
            "Streaming Engine": 2 * 0.09,
            "Pub/Sub: publish, deliver": 1e9 / 1_099_511_627_776 * 40,  # 500 bytes, twice
            "Pub/Sub: kept by the topic": 5e8 / 1_073_741_824 * 3 / 30.416667 * 0.27,
            "BigQuery: Storage Write API": 1_000_000 / 1_048_576 * 0.025,
            "BigQuery: storage": 1_000_000 / 1_048_576 * 2 * 0.02,
        }
    )


def test_streaming_engine_by_the_data_that_it_processes():
    assert dollars("streaming", streaming_engine="data")["Streaming Engine"] == pytest.approx(0.5 * 0.02)
    assert "Streaming Engine" not in dollars("idle month", streaming_engine="data")


def test_a_second_subscription_is_delivered_to_as_well():
    one, two = (dollars("streaming", subscriptions=n)["Pub/Sub: publish, deliver"] for n in (1, 2))
    assert two == pytest.approx(1.5 * one)


def test_a_month_without_transactions():
    assert dollars("idle month") == pytest.approx(
        {
            "workers: vCPU": 730 * 2 * 0.07,
            "workers: memory": 730 * 8 * 0.004,
            "workers: disk": 730 * 30 * 0.0001,
            "Streaming Engine": 730 * 0.5 * 0.09,
            "bucket with the model": 0.02,
            "an image": 0.15,
        }
    )


def test_the_list_prices_are_the_defaults():
    assert set(vars(Prices()).values()) == set(load_prices()["pipelines"].values())


def test_a_flag_of_each_kind_reaches_the_estimate(capsys):
    flags = ["--batch_rate=50000", "--worker_share=0.5", "--price_batch_vcpu_hour=3.6", "--format=json"]
    assert main(flags) == 0
    lines = json.loads(capsys.readouterr().out)
    (vcpu,) = (line for line in lines if (line["of"], line["item"]) == ("batch", "workers: vCPU"))
    assert vcpu["amount"] == pytest.approx(40 / 3600)
    assert vcpu["dollars"] == pytest.approx(0.04)
    parts = [line["dollars"] for line in lines if line["of"] == "batch"]
    assert parts[-1] == pytest.approx(sum(parts[:-1]))  # the total


def test_the_table_names_region_and_date_of_the_prices(capsys):
    assert main([]) == 0
    prices = load_prices()
    assert f"Prices: {prices['region']}" in (shown := capsys.readouterr().out)
    assert f"as of {prices['date']}" in shown
    assert main(["--price_pubsub_tib=50"]) == 0
    assert "Prices: some passed as flags, the others us-central1" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--worker_share=0", "--batch_rate=0", "--price_pubsub_tib=-1", "--vcpus=0"])
def test_a_figure_out_of_its_range_is_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main([flag])
    assert ended.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err
