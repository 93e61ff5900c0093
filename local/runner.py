"""A runner for streaming pipelines on this machine: Beam's direct runner, made fit for a Pub/Sub backlog.

    pipeline = beam.Pipeline(runner=LocalStreamingRunner(), options=PipelineOptions(streaming=True))
    ...
    run_until_drained(pipeline, is_done=lambda: rows_in_bigquery() == expected, timeout=120)

On a command line its name is `--runner=local.runner.LocalStreamingRunner`: Beam takes the dotted name of any
runner class.

No library does it: Beam's PrismRunner is a Go binary that Beam downloads, FnApiRunner cannot read Pub/Sub,
and the direct runner acknowledges before it processes and sets a DoFn up for every bundle. So this room
changes the direct runner, through private parts of Beam; `local.versions` has the version that is checked.

The changes and their reasons are in `local.evaluators`. As in `BundleBasedDirectRunner`, there is one worker
thread, steps are not fused, and state and timers live in memory. Delivery is at least once: a message is
acknowledged after the steps that it can reach have run. A step with state (a batch that waits for its timer,
a window) loses at a crash only what it has held longer than `ack_delay`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.options.value_provider import RuntimeValueProvider
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor, PTransformOverride
from apache_beam.runners.direct import direct_runner as beam_direct
from apache_beam.runners.direct.bundle_factory import BundleFactory
from apache_beam.runners.direct.clock import RealClock
from apache_beam.runners.direct.consumer_tracking_pipeline_visitor import ConsumerTrackingPipelineVisitor
from apache_beam.runners.direct.executor import Executor
from apache_beam.runners.runner import PipelineResult, PipelineState
from apache_beam.transforms.external import ExternalTransform
from apache_beam.transforms.userstate import is_stateful_dofn
from google.cloud.pubsub_v1 import SubscriberClient

from common.command import CommandError
from common.pubsub import subscriber_client
from local.evaluators import LocalContext, LocalEvaluators, Progress
from local.subscription import Subscription, close_all
from local.versions import check_version

_LOGGER = logging.getLogger(__name__)
_STEP_SECONDS = 0.5
_GRACE_SECONDS = 6.0
"""Wait for a bundle in progress when a pipeline ends. An idle worker of Beam checks for work every 5 s."""

STATE_ACK_DELAY = 5.0
"""Seconds for which messages stay unacknowledged in a pipeline that has steps with state."""


class _Inspector(PipelineVisitor):
    """Finds the Pub/Sub reads and the state of a pipeline, and refuses what the runner cannot run."""

    def __init__(self) -> None:
        self.reads: list[AppliedPTransform] = []
        self.stateful = False

    def visit_transform(self, applied: AppliedPTransform) -> None:
        transform = applied.transform
        if isinstance(transform, ExternalTransform):
            raise ValueError(
                f"{applied.full_label}: the local runner cannot run cross-language transforms. "
                "Choose another --write_method, or another runner."
            )
        if isinstance(transform, beam_direct._DirectReadFromPubSub):
            if transform._source.id_label:
                raise ValueError(f"{applied.full_label}: the local runner does not support id_label.")
            self.reads.append(applied)
        grouping = (beam_direct._GroupByKeyOnly, beam_direct._StreamingGroupAlsoByWindow)
        if isinstance(transform, grouping) or (
            isinstance(transform, beam.ParDo) and is_stateful_dofn(transform.dofn)
        ):
            self.stateful = True


class _WithoutCheckpoints(PTransformOverride):
    """Leaves checkpoints out: steps are not fused here, and one that fails is repeated alone.

    A shuffle would keep the rows in memory until they are processed, and so delay acknowledgements.
    """

    def matches(self, applied_ptransform: AppliedPTransform) -> bool:
        return isinstance(applied_ptransform.transform, beam.Reshuffle)

    def get_replacement_transform_for_applied_ptransform(
        self, applied_ptransform: AppliedPTransform
    ) -> beam.PTransform:
        return beam.Map(lambda element: element)


class LocalStreamingRunner(beam_direct.BundleBasedDirectRunner):
    """Runs a streaming pipeline in this process.

    Args:
      max_messages: The most messages of a bundle.
      ack_delay: At least so many seconds lie between pulling and acknowledging a message. None: 5 s in a
        pipeline that has steps with state, otherwise 0.

    Raises:
      CommandError: another version of Beam is installed.
    """

    def __init__(self, max_messages: int = 1000, ack_delay: float | None = None) -> None:
        if error := check_version("apache-beam"):
            raise CommandError(error)
        super().__init__()
        self._max_messages = max_messages
        self._ack_delay = ack_delay

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> LocalResult:
        """Starts the pipeline in the background.

        When this returns, subscriptions of topics that the pipeline reads exist: it sees what is published
        from then on.

        Raises:
          ValueError: the pipeline has a transform that this runner cannot run, or is not a streaming one.
        """
        if not options.view_as(StandardOptions).streaming:
            raise ValueError(
                "The local runner runs streaming pipelines: pass --streaming, or use FnApiRunner."
            )
        pipeline.replace_all([_WithoutCheckpoints(), *beam_direct._get_transform_overrides(options)])
        inspector = _Inspector()
        pipeline.visit(inspector)
        graph = ConsumerTrackingPipelineVisitor()
        pipeline.visit(graph)
        context = LocalContext(
            options,
            BundleFactory(stacked=options.view_as(DirectOptions).direct_runner_use_stacked_bundle),
            graph.root_transforms,
            graph.value_to_consumers,
            graph.step_names,
            graph.views,
            RealClock(),
        )
        RuntimeValueProvider.set_runtime_options({})
        client = subscriber_client() if inspector.reads else None
        progress = Progress({applied: self._subscription(client, applied) for applied in inspector.reads})
        progress.ack_delay = self._ack_delay if self._ack_delay is not None else STATE_ACK_DELAY
        if self._ack_delay is None and not inspector.stateful:
            progress.ack_delay = 0.0
        context.progress = progress
        executor = Executor(graph.value_to_consumers, LocalEvaluators(context), context)
        _report_end(executor, progress)
        for subscription in progress.subscriptions.values():
            subscription.open()
        executor.start(graph.root_transforms)
        return LocalResult(executor, context, progress, client)

    def _subscription(self, client: SubscriberClient | None, applied: Any) -> Subscription:
        source = applied.transform._source
        assert client is not None
        if source.subscription_name:
            name = client.subscription_path(source.project, source.subscription_name)
            return Subscription(client, name, None, self._max_messages)
        topic = f"projects/{source.project}/topics/{source.topic_name}"
        return Subscription.temporary(client, source.project, topic, self._max_messages)


def _report_end(executor: Executor, progress: Progress) -> None:
    """Notes the end of the pipeline in `progress`; Beam reports it only to a thread that waits for it."""
    updates = executor._executor.visible_updates
    stock = updates.offer

    def offer(update: Any) -> None:
        failure = update.exception
        # A stall is reported as a tuple.
        progress.failure = progress.failure or (failure[0] if isinstance(failure, tuple) else failure)
        progress.finished.set()
        stock(update)

    updates.offer = offer


class LocalResult(beam_direct.DirectPipelineResult):
    """A pipeline that was started by LocalStreamingRunner."""

    def __init__(
        self,
        executor: Executor,
        context: LocalContext,
        progress: Progress,
        client: SubscriberClient | None,
    ) -> None:
        super().__init__(executor, context)
        self._progress = progress
        self._client = client

    def __del__(self) -> None:
        """Does nothing: Beam's warns of a running pipeline, and fails at the end of the interpreter."""

    @property
    def state(self) -> str:
        """The state; FAILED as soon as a bundle has failed four times, even if no thread waits."""
        if self._state == PipelineState.RUNNING and self._progress.failure is not None:
            return PipelineState.FAILED
        return self._state

    @property
    def messages_read(self) -> int:
        """The number of messages that the pipeline has pulled, redelivered ones included."""
        return self._progress.messages

    @property
    def busy_seconds(self) -> float:
        """Seconds since the first message was pulled; 0 before."""
        began = self._progress.began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def idle_seconds(self) -> float:
        """Seconds since something came in, was in progress, or waited for a timer."""
        since = self._progress.idle_since
        return 0.0 if since is None else time.monotonic() - since

    def wait_until_finish(self, duration: int | None = None) -> str:
        """Waits for the end, at most `duration` milliseconds, and returns the state.

        Raises:
          Exception: the cause of a failed pipeline.
          KeyboardInterrupt, SystemExit: the program ends, by Ctrl-C or because its output was cut. The
            pipeline is cancelled: otherwise its temporary subscriptions would stay.
        """
        if PipelineState.is_terminal(self._state):
            return self._state
        try:
            finished = self._wait(None if duration is None else duration / 1000)
        except (KeyboardInterrupt, SystemExit):
            self.cancel()
            raise
        if not finished and self._progress.failure is None:
            return self._state
        self._end(PipelineState.FAILED if self._progress.failure is not None else PipelineState.DONE)
        if self._progress.failure is not None:
            raise self._progress.failure
        return self._state

    def _wait(self, seconds: float | None) -> bool:
        """Waits for the end, in steps: a signal to another thread ends no wait of this one."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = _STEP_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
            if self._progress.finished.wait(min(left, _STEP_SECONDS)):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def cancel(self) -> str:
        """Ends the pipeline after the bundle in progress, for which it waits at most 6 seconds.

        Messages that are not acknowledged come again. A Pub/Sub that does not answer is waited for 3 s more.
        """
        if not PipelineState.is_terminal(self._state):
            self._end(PipelineState.CANCELLED)
        return self._state

    def drain(self, timeout: float = 60.0) -> str:
        """Stops pulling, processes and acknowledges the messages that were pulled, and ends the pipeline.

        Raises:
          TimeoutError: it takes longer than `timeout` seconds. The pipeline is cancelled.
          Exception: the cause of a failed pipeline.
        """
        progress = self._progress
        progress.drain.set()
        deadline = time.monotonic() + timeout
        while not progress.quiet.wait(0.05) and progress.subscriptions:
            if progress.failure is not None:
                return self.wait_until_finish()
            if time.monotonic() > deadline:
                self.cancel()
                raise TimeoutError(f"The pipeline did not come to rest within {timeout:.0f} s.")
        for subscription in progress.subscriptions.values():
            subscription.acknowledge()
            subscription.confirm()
        return self.cancel()

    def _end(self, state: str) -> None:
        self._progress.stop.set()
        for subscription in self._progress.subscriptions.values():
            subscription.stop()
        if self._stop_workers():
            self._progress.tear_down()
        else:
            _LOGGER.warning(
                "The bundle in progress has not ended; it is given up, and its messages come again"
            )
        close_all(self._progress.subscriptions.values())
        if self._client is not None:
            self._client.close()
        self._state = state

    def _stop_workers(self) -> bool:
        """Stops the workers; returns False if one has not ended in time.

        Beam's shutdown waits without a limit, and a sink without an answer retries for minutes. The threads
        are daemons: the process ends without them.
        """
        service = self._executor._executor.executor_service
        service.shutdown()
        self._executor._executor.evaluation_context.shutdown()
        deadline = time.monotonic() + _GRACE_SECONDS
        try:
            while any(worker.is_alive() for worker in service.workers) and time.monotonic() < deadline:
                time.sleep(0.01)
        except KeyboardInterrupt:  # a second Ctrl-C: do not wait, but still close the subscriptions
            _LOGGER.warning("Interrupted again")
        return not any(worker.is_alive() for worker in service.workers)


def run_until_drained(
    pipeline: beam.Pipeline | PipelineResult,
    is_done: Callable[[], bool] | None = None,
    timeout: float = 300.0,
    quiet: float = 2.0,
) -> LocalResult:
    """Runs a pipeline until its work is done, then drains it.

    Args:
      pipeline: A pipeline with a LocalStreamingRunner, or what its `run` returned.
      is_done: Returns True when everything expected has come out; called five times a second. None: the work
        is done when nothing has come in for `quiet` seconds.
      timeout: Seconds.
      quiet: Seconds.

    Returns:
      The result with its metrics; its state is CANCELLED.

    Raises:
      TimeoutError: `is_done` is still false after `timeout` seconds. The pipeline is cancelled.
      Exception: the cause of a failed pipeline.
    """
    result = pipeline.run() if isinstance(pipeline, beam.Pipeline) else pipeline
    if not isinstance(result, LocalResult):
        raise TypeError(f"pipeline: expected one on LocalStreamingRunner, got a {type(result).__name__}")
    deadline = time.monotonic() + timeout
    try:
        while not (is_done() if is_done is not None else result.idle_seconds >= quiet):
            if result.wait_until_finish(duration=200) != PipelineState.RUNNING:
                return result
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"Not done after {timeout:.0f} s: {result.messages_read} messages were read, and nothing "
                    f"new came for {result.idle_seconds:.0f} s."
                )
        result.drain(timeout=max(1.0, deadline - time.monotonic()))
    finally:
        result.cancel()
    return result
