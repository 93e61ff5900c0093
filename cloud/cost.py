"""Estimates the bill of Google Cloud: a million transactions in batch and streamed, and a month without any.

Every figure is a flag: what was measured on a machine, what is assumed of a project, and the list prices. A
line of the answer is an amount times a price. Nothing is asked over the network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, NamedTuple

from common.command import Parser, command
from common.limits import SPLIT_BYTES
from common.options import add_options, group, option, read_options
from common.output import add_format, print_rows
from common.prices import HOURS_A_MONTH, load_prices, price_note
from common.values import Number, at_least

EXAMPLES: Final = """
  anomaly cost
  anomaly cost --stream_rate=8000 --worker_share=0.25 --price_streaming_vcpu_hour=0.0759
  anomaly cost --streaming_engine=data --format json

The defaults are list prices of us-central1 and figures that `python -m benchmarks.costs` and
`python -m benchmarks.stream` have measured. docs/cost.md says where each comes from.
"""

MILLION: Final = 1_000_000
GB: Final = 1e9
GIB: Final = 1024**3
TIB: Final = 1024**4
DAYS_A_MONTH: Final = HOURS_A_MONTH / 24
_PRICES: Final = load_prices()["pipelines"]
_POSITIVE: Final = Number(0, 1e12, whole=False)
_RATE: Final = Number(1, 1e12, whole=False)
_USED: Final = Number(0.01, 1, whole=False)

Of = Literal["batch", "streaming", "idle month"]


@dataclass(frozen=True)
class Measured:
    """Figures of one core of a machine, and of its messages and rows."""

    batch_rate: float = option(
        98_978.0,
        type=_RATE,
        metavar="ROWS",
        help="rows a second of CPU time, JSON lines to Parquet (default: %(default)s)",
    )
    stream_rate: float = option(
        18_200.0,
        type=_RATE,
        metavar="ROWS",
        help="messages a second of CPU time of the pipeline, at 80 %% of its capacity (default: %(default)s)",
    )
    message_bytes: float = option(
        447.0, type=_POSITIVE, metavar="BYTES", help="of a message (default: %(default)s)"
    )
    row_bytes: float = option(
        267.0, type=_POSITIVE, metavar="BYTES", help="of a row of scores in BigQuery (default: %(default)s)"
    )
    file_bytes: float = option(
        90.0, type=_POSITIVE, metavar="BYTES", help="of a row of scores in Parquet (default: %(default)s)"
    )


@dataclass(frozen=True)
class Assumed:
    """Figures that differ from project to project."""

    worker_share: float = option(
        0.33,
        type=_USED,
        metavar="SHARE",
        help="rate of a vCPU of a worker, as a share of the measured rate (default: %(default)s)",
    )
    utilisation: float = option(
        0.6,
        type=_USED,
        metavar="SHARE",
        help="mean share of the vCPUs of a stream that is in use; the rest is billed as well "
        "(default: %(default)s)",
    )
    vcpus: int = option(2, type=at_least(1), metavar="N", help="of a worker (default: %(default)s)")
    memory_gb: float = option(
        8.0, type=_POSITIVE, metavar="GB", help="of a worker (default: %(default)s, as n2-standard-2)"
    )
    batch_disk_gb: float = option(25.0, type=_POSITIVE, metavar="GB", help="default: %(default)s")
    streaming_disk_gb: float = option(30.0, type=_POSITIVE, metavar="GB", help="default: %(default)s")
    shuffled_bytes: float = option(
        0.0,
        type=_POSITIVE,
        metavar="BYTES",
        help="that Dataflow Shuffle gets of a row in batch: none but for alerts without history features, "
        "some 450 with them (default: %(default)s)",
    )
    streaming_engine: Literal["units", "data"] = option(
        "units",
        help="how Streaming Engine is billed: by compute units, as a stream of `anomaly launch` is, or by "
        "the data that it processes (default: %(default)s)",
    )
    units_a_million: float = option(
        1.0,
        type=_POSITIVE,
        metavar="HOURS",
        help="compute unit hours a million messages; nobody publishes them, the metrics of a job show them "
        "(default: %(default)s)",
    )
    units_idle: float = option(
        0.1,
        type=_POSITIVE,
        metavar="UNITS",
        help="compute units while nothing is published (default: %(default)s)",
    )
    message_overhead: float = option(
        60.0,
        type=_POSITIVE,
        metavar="BYTES",
        help="id, time and attributes, which Pub/Sub counts as well (default: %(default)s)",
    )
    subscriptions: int = option(
        1, type=at_least(1), metavar="N", help="deliveries of a message (default: %(default)s)"
    )
    topic_days: float = option(
        1.0, type=_POSITIVE, metavar="DAYS", help="that the topic keeps messages (default: %(default)s)"
    )
    kept_months: float = option(
        1.0, type=_POSITIVE, metavar="MONTHS", help="that rows and files are kept (default: %(default)s)"
    )
    operations_a_share: float = option(
        10.0,
        type=_POSITIVE,
        metavar="N",
        help="operations of class A on Cloud Storage for each 32 MB of input (default: %(default)s)",
    )


def _price(name: str, what: str) -> float:
    price: float = option(_PRICES[name], type=_POSITIVE, metavar="USD", help=f"{what} (default: %(default)s)")
    return price


@dataclass(frozen=True)
class Prices:
    """Prices in US dollars."""

    price_batch_vcpu_hour: float = _price("batch vCPU hour", "Dataflow, batch")
    price_streaming_vcpu_hour: float = _price("streaming vCPU hour", "Dataflow, streaming")
    price_memory_gb_hour: float = _price("memory GB hour", "Dataflow")
    price_disk_gb_hour: float = _price("batch disk GB hour", "Dataflow, standard persistent disk")
    price_shuffle_gb: float = _price("Shuffle data processed GB", "Dataflow Shuffle, data processed")
    price_streaming_engine_gb: float = _price("Streaming Engine data processed GB", "Streaming Engine")
    price_compute_unit_hour: float = _price("Streaming Engine compute unit hour", "Streaming Engine")
    price_pubsub_tib: float = _price("Pub/Sub TiB", "published or delivered")
    price_topic_gib_month: float = _price("Pub/Sub topic retention GiB month", "kept by a topic")
    price_write_gib: float = _price("Storage Write API GiB", "BigQuery Storage Write API")
    price_table_gib_month: float = _price("BigQuery storage GiB month", "BigQuery, active logical storage")
    price_storage_gib_month: float = _price("Cloud Storage GiB month", "Cloud Storage, standard class")
    price_operation: float = _price("Cloud Storage class A operation", "Cloud Storage, class A")
    price_image_gib_month: float = _price("Artifact Registry GiB month", "Artifact Registry")


@dataclass(frozen=True)
class CostOptions:
    """All figures of an estimate."""

    measured: Measured = group("measured")
    assumed: Assumed = group("assumed")
    prices: Prices = group(f"list prices ({price_note()})")


class Line(NamedTuple):
    """An entry of the bill: `amount` of `unit` at `price` each."""

    of: Of
    item: str
    amount: float
    unit: str
    price: float

    @property
    def dollars(self) -> float:
        """The product."""
        return self.amount * self.price


def estimate(options: CostOptions) -> list[Line]:
    """Computes the lines of a million transactions in batch, of a million streamed, and of an idle month."""
    return [*_batch(options), *_streaming(options), *_idle(options)]


def _worker(of: Of, hours: float, vcpu_hour: float, disk_gb: float, options: CostOptions) -> Iterator[Line]:
    """The lines of one worker for some hours."""
    assumed, prices = options.assumed, options.prices
    yield Line(of, "workers: vCPU", hours * assumed.vcpus, "vCPU hour", vcpu_hour)
    yield Line(of, "workers: memory", hours * assumed.memory_gb, "GB hour", prices.price_memory_gb_hour)
    yield Line(of, "workers: disk", hours * disk_gb, "GB hour", prices.price_disk_gb_hour)


def _worker_hours(rate: float, options: CostOptions) -> float:
    """Hours of a worker for a million transactions, `rate` of them a second of CPU time."""
    return MILLION / (rate * options.assumed.worker_share * options.assumed.vcpus) / 3600


def _tables(of: Of, options: CostOptions) -> Iterator[Line]:
    gib, prices = MILLION * options.measured.row_bytes / GIB, options.prices
    yield Line(of, "BigQuery: Storage Write API", gib, "GiB", prices.price_write_gib)
    months = gib * options.assumed.kept_months
    yield Line(of, "BigQuery: storage", months, "GiB month", prices.price_table_gib_month)


def _batch(options: CostOptions) -> Iterator[Line]:
    measured, assumed, prices = options.measured, options.assumed, options.prices
    hours = _worker_hours(measured.batch_rate, options)
    yield from _worker("batch", hours, prices.price_batch_vcpu_hour, assumed.batch_disk_gb, options)
    shuffled = MILLION * assumed.shuffled_bytes / GB
    yield Line("batch", "Dataflow Shuffle", shuffled, "GB", prices.price_shuffle_gb)
    files = MILLION * (measured.message_bytes + measured.file_bytes) / GIB * assumed.kept_months
    yield Line("batch", "Cloud Storage: files", files, "GiB month", prices.price_storage_gib_month)
    operations = MILLION * measured.message_bytes / SPLIT_BYTES * assumed.operations_a_share
    yield Line("batch", "Cloud Storage: operations", operations, "operation", prices.price_operation)
    yield from _tables("batch", options)


def _streaming(options: CostOptions) -> Iterator[Line]:
    measured, assumed, prices = options.measured, options.assumed, options.prices
    hours = _worker_hours(measured.stream_rate, options) / assumed.utilisation
    disk = assumed.streaming_disk_gb
    yield from _worker("streaming", hours, prices.price_streaming_vcpu_hour, disk, options)
    size = MILLION * (measured.message_bytes + assumed.message_overhead)
    if assumed.streaming_engine == "units":
        units = assumed.units_a_million
        yield Line("streaming", "Streaming Engine", units, "unit hour", prices.price_compute_unit_hour)
    else:
        yield Line("streaming", "Streaming Engine", size / GB, "GB", prices.price_streaming_engine_gb)
    carried = size * (1 + assumed.subscriptions) / TIB
    yield Line("streaming", "Pub/Sub: publish, deliver", carried, "TiB", prices.price_pubsub_tib)
    kept = size / GIB * assumed.topic_days / DAYS_A_MONTH
    yield Line("streaming", "Pub/Sub: kept by the topic", kept, "GiB month", prices.price_topic_gib_month)
    yield from _tables("streaming", options)


def _idle(options: CostOptions) -> Iterator[Line]:
    assumed, prices = options.assumed, options.prices
    disk, cpu = assumed.streaming_disk_gb, prices.price_streaming_vcpu_hour
    yield from _worker("idle month", HOURS_A_MONTH, cpu, disk, options)
    if assumed.streaming_engine == "units":
        units = HOURS_A_MONTH * assumed.units_idle
        yield Line("idle month", "Streaming Engine", units, "unit hour", prices.price_compute_unit_hour)
    yield Line("idle month", "bucket with the model", 1.0, "GiB month", prices.price_storage_gib_month)
    yield Line("idle month", "an image", 1.5, "GiB month", prices.price_image_gib_month)


def rows(lines: Sequence[Line]) -> list[dict[str, object]]:
    """Makes rows for output: the lines, and behind those of one kind their total."""
    out: list[dict[str, object]] = []
    for of in dict.fromkeys(line.of for line in lines):
        mine = [line for line in lines if line.of == of]
        out += [line._asdict() | {"dollars": line.dollars} for line in mine]
        total = sum(line.dollars for line in mine)
        out.append({"of": of, "item": "total", "amount": None, "unit": None, "price": None, "dollars": total})
    return out


def _shown(value: object) -> object:
    """Writes a number for people: prices and amounts may be a thousandth."""
    return f"{value:,.4g}" if isinstance(value, float) else value


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: prints the estimate."""
    parser = Parser("anomaly cost", __doc__, EXAMPLES)
    add_options(parser, CostOptions)
    add_format(parser)
    namespace = parser.parse_args(argv)
    options = read_options(CostOptions, namespace)
    bill = rows(estimate(options))
    if namespace.format != "table":
        print_rows(bill, namespace.format)
    else:
        print_rows([{name: _shown(value) for name, value in row.items()} for row in bill])
        changed = asdict(options.prices) != asdict(Prices())
        origin = "Prices: some passed as flags, the others " if changed else "Prices: "
        print(f"\nBatch and streaming: a million transactions. {origin}{price_note()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
