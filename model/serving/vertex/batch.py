"""Scores a BigQuery table by a model of the registry, without an endpoint: a batch prediction job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from common.names import DATASET, TABLE
from common.options import OptionError, option
from common.values import at_least
from model import artifact
from model.outputs import ANSWER_FIELDS
from model.serving.vertex.registry import find_version
from model.serving.vertex.session import MANAGED_LABEL, Actions, VertexError

_BIGQUERY: Final = "bq://"


@dataclass(frozen=True)
class BatchOptions:
    """A batch prediction job over a table."""

    name: str = option(help="display name of the model")
    source: str = option(
        metavar="TABLE", help="PROJECT.DATASET.TABLE with a column of each feature; others are passed over"
    )
    output: str = option(metavar="DATASET", help="PROJECT.DATASET that takes the table of the predictions")
    version: str | None = option(None, help="version of the model (default: the newest)")
    fields: tuple[str, ...] = option(
        (),
        nargs="+",
        choices=ANSWER_FIELDS,
        help="of an answer, for the custom container (default: the server's); prebuilt ones answer all",
    )
    machine_type: str = option("n1-standard-4", help="default: %(default)s")
    replicas: int = option(1, type=at_least(1), metavar="N", help="to start with (default: %(default)s)")
    max_replicas: int = option(10, type=at_least(1), metavar="N", help="default: %(default)s")
    rows: int = option(
        64,
        type=at_least(1),
        metavar="N",
        help="instances of a request to the container (default: %(default)s)",
    )
    service_account: str | None = option(None, metavar="EMAIL", help="that reads, writes and runs the model")
    wait: bool = option(True, help="until the job has ended (default: yes)")

    def __post_init__(self) -> None:
        for flag, value, rule in (("--source", self.source, TABLE), ("--output", self.output, DATASET)):
            rule.check(value.removeprefix(_BIGQUERY), flag)
        if self.replicas > self.max_replicas:
            raise OptionError(
                f"--max_replicas: expected --replicas {self.replicas} or more, got {self.max_replicas}"
            )


def predict_table(aiplatform: Any, options: BatchOptions, actions: Actions) -> None:
    """Starts the job, waits for it, and prints the table of the predictions.

    Raises:
      VertexError: there is no such model or version, or the job failed.
      ArtifactError: the artifact of the model cannot be read; it names the features.
    """
    from google.cloud.aiplatform import initializer, utils
    from google.cloud.aiplatform_v1.types import BatchPredictionJob

    model = find_version(aiplatform, options.name, options.version)
    features = artifact.read(model.uri).manifest.features
    request = BatchPredictionJob(
        display_name=f"{options.name}-batch",
        model=model.versioned_resource_name,
        model_parameters={"fields": list(options.fields)} if options.fields else None,
        input_config={
            "instances_format": "bigquery",
            "bigquery_source": {"input_uri": _uri(options.source)},
        },
        # Without, an instance would hold every column of the table, in the table's order.
        instance_config={"instance_type": "array", "included_fields": list(features)},
        output_config={
            "predictions_format": "bigquery",
            "bigquery_destination": {"output_uri": _uri(options.output)},
        },
        dedicated_resources={
            "machine_spec": {"machine_type": options.machine_type},
            "starting_replica_count": options.replicas,
            "max_replica_count": options.max_replicas,
        },
        manual_batch_tuning_parameters={"batch_size": options.rows},
        service_account=options.service_account or "",
        labels=dict([MANAGED_LABEL]),
    )
    # The SDK's own submit knows no instance_config.
    client = initializer.global_config.create_client(client_class=utils.JobClientWithOverride)
    made = actions.do(
        "JobService.create_batch_prediction_job",
        client.create_batch_prediction_job,
        parent=initializer.global_config.common_location_path(),
        batch_prediction_job=request,
    )
    if made is None:
        return
    print(f"job      {made.name}")
    if not options.wait:
        return
    job = aiplatform.BatchPredictionJob(made.name)
    try:
        job.wait_for_completion()
    except RuntimeError as error:
        raise VertexError(
            f"{made.name}: {error}; rows that failed are in {_table(job) or 'no table'}"
        ) from error
    counts = job.completion_stats
    print(f"rows     {counts.successful_count} predicted, {counts.failed_count} failed")
    print(f"table    {_table(job)}")


def _table(job: Any) -> str:
    """The table of the predictions; "" where there is none."""
    info = job.output_info
    dataset = info.bigquery_output_dataset.removeprefix(_BIGQUERY) if info else ""
    return ".".join(filter(None, (dataset, info.bigquery_output_table))) if info else ""


def _uri(name: str) -> str:
    return name if name.startswith(_BIGQUERY) else f"{_BIGQUERY}{name}"
