"""Evaluators of the local runner, for a Pub/Sub read and a ParDo, in place of those of Beam's direct runner.

`local.runner` says why, and checks the version of Beam whose private parts are used here.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from apache_beam import pvalue
from apache_beam.coders import registry
from apache_beam.internal import pickler
from apache_beam.pipeline import AppliedPTransform
from apache_beam.runners import common
from apache_beam.runners.common import DoFnRunner, DoFnState
from apache_beam.runners.direct import transform_evaluator as beam_evaluators
from apache_beam.runners.direct.bundle_factory import _Bundle
from apache_beam.runners.direct.direct_runner import _DirectReadFromPubSub
from apache_beam.runners.direct.direct_userstate import DirectUserStateContext
from apache_beam.runners.direct.evaluation_context import EvaluationContext
from apache_beam.runners.direct.util import TransformResult
from apache_beam.runners.worker import statesampler
from apache_beam.transforms import core
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import is_stateful_dofn
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils import counters
from apache_beam.utils.timestamp import Timestamp

from local.subscription import Subscription, to_beam

_LOGGER = logging.getLogger(__name__)
_SHORTEST_WAIT, _LONGEST_WAIT = 0.002, 0.05


class _Relay(common.Receiver):
    """Passes the output of a DoFn to the current bundle."""

    def __init__(self) -> None:
        self.bundle: Any = None

    def receive(self, windowed_value: Any) -> None:
        self.bundle.add(windowed_value)


@dataclass
class ReadyDoFn:
    """A DoFn that is set up, for many bundles."""

    runner: DoFnRunner
    outputs: dict[Any, _Relay]
    state: DirectUserStateContext | None = None


class LocalContext(EvaluationContext):
    """Beam's evaluation context, which every evaluator gets, with the progress of the pipeline."""

    progress: Progress


@dataclass
class Progress:
    """The state that the parts of a running pipeline share.

    Attributes:
      subscriptions: The subscription of each Pub/Sub read.
      ack_delay: The least seconds between pulling a message and acknowledging it.
      stop: Set when the pipeline is to end.
      drain: Set when sources must not pull any more.
      quiet: Set when `drain` is set and every pulled message has been processed.
      failure: The cause of a failed pipeline.
      messages: The number of messages that were pulled.
      began: The time (time.monotonic) of the first message, or None.
      idle_since: The time (time.monotonic) since which there is nothing to do, or None.
      finished: Set when the runner has nothing more to do, because it is done or because of `failure`.
      dofns: The DoFns that are set up.
      waits: The last wait of each source, in seconds.
      rests: For each source, the number of times that nothing was in progress after `drain`.
      watermarks: The last watermark of each source; it never goes back.
    """

    subscriptions: dict[AppliedPTransform, Subscription]
    ack_delay: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    drain: threading.Event = field(default_factory=threading.Event)
    quiet: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None
    messages: int = 0
    began: float | None = None
    idle_since: float | None = None
    dofns: dict[AppliedPTransform, ReadyDoFn] = field(default_factory=dict)
    waits: dict[AppliedPTransform, float] = field(default_factory=dict)
    rests: collections.Counter[AppliedPTransform] = field(default_factory=collections.Counter)
    watermarks: dict[AppliedPTransform, Timestamp] = field(default_factory=dict)

    @property
    def pulling(self) -> bool:
        """True while sources may pull."""
        return self.failure is None and not self.stop.is_set() and not self.drain.is_set()

    def tear_down(self) -> None:
        """Tears down every DoFn."""
        while self.dofns:
            applied, ready = self.dofns.popitem()
            try:
                ready.runner.teardown()
            except Exception:
                _LOGGER.exception("Teardown of %s failed", applied.full_label)


class PubSubRead(beam_evaluators._TransformEvaluator):
    """Reads the messages of a subscription, as one bundle.

    Differences from Beam's evaluator, each for a reason:
    - It pulls up to 1,000 messages at once and does not wait. Beam's asks for 10 and blocks the only worker
      thread for up to 30 s when there are none, which delays timers and cancel().
    - It acknowledges the messages of a bundle while the next one is pulled, which the runner does only after
      everything downstream has run. Beam's acknowledges before the first step sees the message.
    - The watermark follows the messages while there is a backlog, and the clock when there is none. Beam's is
      always the clock, so that a backlog is late data.
    """

    _evaluation_context: LocalContext

    def start_bundle(self) -> None:
        """Does nothing: the work is in finish_bundle, as the runner expects of a source."""

    def process_element(self, element: Any) -> None:
        """Does nothing: a root transform has no input."""

    def finish_bundle(self) -> TransformResult:
        """Acknowledges the last bundle and pulls the next."""
        progress = self._evaluation_context.progress
        subscription = progress.subscriptions[self._applied_ptransform]
        read: Any = self._applied_ptransform.transform
        source = read._source
        pairs = []
        if progress.pulling:
            subscription.acknowledge(older_than=progress.ack_delay)
            pairs = [to_beam(received, source.timestamp_attribute) for received in subscription.pull()]
        bundles = []
        if pairs:
            bundle = self._evaluation_context.create_bundle(next(iter(self._outputs)))
            for timestamp, message in pairs:
                element = message if source.with_attributes else message.data
                bundle.output(GlobalWindows.windowed_value(element, timestamp=timestamp))
            bundles.append(bundle)
        self._note(progress, len(pairs))
        earliest = min(timestamp for timestamp, _ in pairs) if pairs else Timestamp.of(time.time())
        watermark = max(earliest, progress.watermarks.get(self._applied_ptransform, earliest))
        progress.watermarks[self._applied_ptransform] = watermark
        return TransformResult(self, bundles, [self._again()], None, {None: watermark})

    def _note(self, progress: Progress, count: int) -> None:
        """Updates `progress`, and waits a little when there is nothing to do."""
        progress.messages += count
        progress.began = progress.began or time.monotonic()
        if count:
            progress.idle_since = None
            progress.waits.pop(self._applied_ptransform, None)
            return
        if not self._timers_pending():
            progress.idle_since = progress.idle_since or time.monotonic()
            if progress.drain.is_set():
                # Twice, because another source may have pulled just before it saw `drain`.
                progress.rests[self._applied_ptransform] += 1
                if all(progress.rests[applied] >= 2 for applied in progress.subscriptions):
                    progress.quiet.set()
        else:
            progress.idle_since = None
        wait = min(2 * progress.waits.get(self._applied_ptransform, _SHORTEST_WAIT), _LONGEST_WAIT)
        progress.waits[self._applied_ptransform] = wait
        progress.stop.wait(wait)

    def _timers_pending(self) -> bool:
        """Tests for a step that waits for a processing time timer, with messages in its state."""
        states = self._evaluation_context._transform_keyed_states.values()
        return any(
            domain == TimeDomain.REAL_TIME
            for keyed in states
            for state in list(keyed.values())
            for timers in getattr(state, "timers", {}).values()
            for _, domain, _ in timers
        )

    def _again(self) -> _Bundle:
        """Makes an empty bundle, for which the runner calls this source again.

        The runner keeps every such bundle without elements forever, and walks through all of them each time.
        These bundles are equal, so it keeps one.
        """
        return _Recurring(self._input_committed_bundle.pcollection)


class _Recurring(_Bundle):
    """Empty bundles of one PCollection that are equal, so that a set holds one of them."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Recurring) and other.pcollection is self.pcollection

    def __hash__(self) -> int:
        return id(self.pcollection)


class ReusingParDo(beam_evaluators._ParDoEvaluator):
    """Sets a DoFn up once and uses it for bundle after bundle, as every runner but the direct one does.

    Beam's direct runner pickles, unpickles, sets up and tears down each DoFn for each bundle: a model is
    loaded and a connection opened every time, and what a step with state has decoded is lost. DoFns with side
    inputs are left to it.
    """

    _evaluation_context: LocalContext

    def __init__(self, context: LocalContext, applied: Any, bundle: Any, side_inputs: Any) -> None:
        super().__init__(context, applied, bundle, side_inputs)
        self._reused = not side_inputs

    def start_bundle(self) -> None:
        """Starts a bundle on the DoFn that is ready, or makes one ready."""
        self._metrics_container().reset()  # what an attempt that failed has counted
        if not self._reused:
            super().start_bundle()
            return
        dofns = self._evaluation_context.progress.dofns
        # A bundle that fails takes its DoFn with it: it is put back when the bundle has been finished.
        if self._applied_ptransform not in dofns:
            dofns[self._applied_ptransform] = self._make_ready()
        self._ready = dofns.pop(self._applied_ptransform)
        self.runner = self._ready.runner
        if self._ready.state is not None:
            self._set_state(self._ready.state)
        self._bundles = []
        for tag, relay in self._ready.outputs.items():
            collection: Any = pvalue.PCollection(None, tag=tag)  # type: ignore[arg-type] # as Beam does
            collection.producer = self._applied_ptransform
            relay.bundle = self._evaluation_context.create_bundle(collection)
            relay.bundle.tag = tag
            self._bundles.append(relay.bundle)
        self.runner.start()

    def _set_state(self, state: DirectUserStateContext) -> None:
        """Points the DoFn at the state that this bundle is to change, and names its timers for Beam."""
        state.step_context = self._step_context
        self.user_state_context, self.key_coder = state, state.key_coder
        self.user_timer_map = {f"user/{spec.name}": spec for spec in state.all_timer_specs}

    def _make_ready(self) -> ReadyDoFn:
        applied: Any = self._applied_ptransform
        # Pickled once, so that what could not be sent to a worker fails here too.
        dofn = pickler.roundtrip(applied.transform.dofn)
        state = None
        if is_stateful_dofn(dofn):
            pair = applied.inputs[0].element_type
            known = pair is not None and pair != Any
            coder = registry.get_coder(pair).key_coder() if known else registry.get_coder(Any)
            state = DirectUserStateContext(self._step_context, dofn, coder)
        outputs = beam_evaluators._TaggedReceivers(self._evaluation_context)
        outputs.update((tag, _Relay()) for tag in applied.outputs)
        runner = DoFnRunner(
            dofn,
            getattr(applied.transform, "args", []),
            getattr(applied.transform, "kwargs", {}),
            [],
            applied.inputs[0].windowing,
            tagged_receivers=outputs,
            step_name=applied.full_label,
            state=DoFnState(counters.CounterFactory()),
            user_state_context=state,
        )
        runner.setup()
        return ReadyDoFn(runner, {tag: outputs[tag] for tag in applied.outputs}, state)

    def finish_bundle(self) -> TransformResult:
        """Finishes the bundle; the DoFn stays ready for the next."""
        if not self._reused:
            result = super().finish_bundle()
            self._commit_metrics()
            return result
        self.runner.finish()
        if self._ready.state is not None:
            self._ready.state.commit()
            self._ready.state.reset()
        self._commit_metrics()
        self._evaluation_context.progress.dofns[self._applied_ptransform] = self._ready
        return TransformResult(self, self._bundles, [], None, None)

    @staticmethod
    def _metrics_container() -> Any:
        """Returns the container that counters count into now."""
        tracker: Any = statesampler.get_current_tracker()
        return tracker.current_state().metrics_container

    def _commit_metrics(self) -> None:
        """Commits the counters of the bundle.

        The worker's state sampler keeps the states of a step by name, and with them the metrics container of
        the step's first bundle. Later bundles count into that one, while Beam's executor reads a new, empty
        one: without this, counters would stand still after the first bundle.
        """
        container = self._metrics_container()
        counted = container.get_cumulative()
        metrics: Any = self._evaluation_context.metrics()
        metrics.commit_physical(self._input_committed_bundle, counted)
        metrics.commit_logical(self._input_committed_bundle, counted)
        container.reset()  # the executor, which for the first bundle reads the same one, finds zeros


class LocalEvaluators(beam_evaluators.TransformEvaluatorRegistry):
    """Beam's evaluators, with the two of this module in their place."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._evaluators[_DirectReadFromPubSub] = PubSubRead
        self._evaluators[core.ParDo] = ReusingParDo
        self._serial: dict[AppliedPTransform, bool] = {}

    def should_execute_serially(self, applied_ptransform: AppliedPTransform) -> bool:
        """Tests whether a step takes one bundle at a time, once for each step.

        Beam asks for every bundle, and then inspects the signatures of all methods of the DoFn: a third of
        the time of a stream of small bundles.
        """
        if applied_ptransform not in self._serial:
            serial: Any = super().should_execute_serially(applied_ptransform)
            self._serial[applied_ptransform] = bool(serial)
        return self._serial[applied_ptransform]
