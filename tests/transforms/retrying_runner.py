"""Beam's FnApiRunner, made to repeat a bundle that fails, as Dataflow does."""

from __future__ import annotations

from collections import Counter
from typing import Any

from apache_beam.runners.portability.fn_api_runner.fn_runner import BundleManager, FnApiRunner


class _RetryingManager(BundleManager):
    """Repeats a bundle at most four times. What an attempt has put out is dropped where it fails.

    Attributes:
      failures: how often each stage has failed; set by the runner.
    """

    failures: Counter[str]

    def process_bundle(self, inputs: Any, expected_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        context = self.bundle_context_manager
        while True:
            try:
                return super().process_bundle(inputs, expected_outputs, *args, **kwargs)
            except Exception:
                self.failures[context.stage.name] += 1
                if self.failures[context.stage.name] > 4:
                    raise
                for buffer in expected_outputs.values():
                    context.execution_context.pcoll_buffers.pop(buffer, None)


class RetryingRunner(FnApiRunner):
    """Runs each bundle at most five times.

    Attributes:
      failures: how often each stage has failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures: Counter[str] = Counter()

    def _get_bundle_manager(self, bundle_context_manager: Any) -> BundleManager:
        manager = _RetryingManager(bundle_context_manager)
        manager.failures = self.failures
        return manager
