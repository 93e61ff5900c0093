"""A batch job on several cores of this machine: Beam's FnApiRunner, each worker in a process of its own.

    options.view_as(DirectOptions).direct_running_mode = "multi_processing"
    options.view_as(DirectOptions).direct_num_workers = 4
    pipeline = beam.Pipeline(runner=ProcessRunner(), options=options)

Beam gives each worker an equal number of the elements of a step, and adds up their counters. The differences
from FnApiRunner with the same options are why this room has its own. It uses private parts of Beam; see
`local.versions`.

| | FnApiRunner | ProcessRunner |
|---|---|---|
| a worker ends before it has connected | the job hangs | the job fails |
| a worker ends later, or a step fails | the others finish their bundles, then the job fails | the job fails |
| Beam's options of the job, such as --project | unknown to the workers | known to them |
| gRPC servers, which do not authenticate | on every address of the machine | on 127.0.0.1 |
| threads of Arrow and BLAS in a worker | one a core | one |
| log of a worker | protocol buffers as text | lines, at the level of this process |
| a path to Python with a space in it | the job hangs | no shell takes part |
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, Final, Self
from unittest import mock

import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, fn_runner, worker_handlers
from apache_beam.runners.worker.log_handler import LOGENTRY_TO_LOG_LEVEL_MAP
from google.protobuf import text_format

from common.command import CommandError
from common.loopback import no_proxy_variables
from local.process import HOST, ServerProcess
from local.versions import check_version

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS: Final = 0.25
_NOTICE_SECONDS: Final = 1.0
"""The longest time from the break of a connection to the known end of its process."""
_EXIT_SECONDS: Final = 10.0
"""The longest wait for a worker that tears its steps down at the end of the work."""
_QUIET: Final = {
    "apache_beam.runners.worker": "WARNING",
    # The worker's main module warns that there is no pickled session to load. Nothing here needs one.
    "__main__": "ERROR",
}


class WorkerEndedError(CommandError):
    """A worker process ended before its work was done. The text has the end of its log."""


class ProcessRunner(FnApiRunner):
    """Runs a batch pipeline to its end, in --direct_num_workers processes."""

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> fn_runner.RunnerResult:
        """Runs a pipeline.

        Raises:
          WorkerEndedError: a worker process ended. The steps that publish what was written have not run.
          CommandError: another version of Beam is installed.
          RuntimeError: a step failed.
        """
        if error := check_version("apache-beam"):
            raise CommandError(error)
        workers = _Workers(json.dumps(worker_options(options), default=str))
        kinds = worker_handlers.WorkerHandler._registered_environments
        servers = types.SimpleNamespace(**vars(grpc))
        servers.server = _local_server
        with (
            mock.patch.object(
                worker_handlers.WorkerHandler,
                "_registered_environments",
                {**kinds, python_urns.SUBPROCESS_SDK: (workers.make, bytes)},
            ),
            mock.patch.object(worker_handlers, "grpc", servers),
            mock.patch.object(worker_handlers, "BasicLoggingService", _WorkerLogs),
            workers,
        ):
            return super().run_via_runner_api(pipeline_proto, options)


def worker_options(options: PipelineOptions) -> dict[str, Any]:
    """Makes the options of a worker process: those of the job, and a log at the level of this process."""
    given: dict[str, Any] = options.get_all_options(drop_default=True)
    level = str(logging.getLogger().getEffectiveLevel())
    overrides = _QUIET | (given.get("sdk_harness_log_level_overrides") or {})
    return {"default_sdk_harness_log_level": level} | given | {"sdk_harness_log_level_overrides": overrides}


def worker_environment() -> dict[str, str]:
    """Makes the variables of a worker process that differ from those of this process."""
    return {
        # Modules that this process has found, the worker must find.
        "PYTHONPATH": os.pathsep.join(sys.path),
        # There is a worker for each core; more threads would only compete with them.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        **no_proxy_variables(),
    }


def _local_server(*args: Any, **kwargs: Any) -> grpc.Server:
    """Makes a gRPC server that listens on 127.0.0.1; Beam makes it listen on every address."""
    server = grpc.server(*args, **kwargs)
    bind = server.add_insecure_port
    server.add_insecure_port = lambda address: bind(address.replace("[::]", HOST))
    return server


class _WorkerLogs(beam_fn_api_pb2_grpc.BeamFnLoggingServicer):
    """Takes the log records of the workers into the log of this process."""

    def Logging(  # noqa: N802
        self, log_messages: Iterator[beam_fn_api_pb2.LogEntry.List], context: Any = None
    ) -> Iterator[beam_fn_api_pb2.LogControl]:
        yield beam_fn_api_pb2.LogControl()
        for batch in log_messages:
            for entry in batch.log_entries:
                _LOGGER.log(LOGENTRY_TO_LOG_LEVEL_MAP[entry.severity], "%s", entry.message)


class _Workers(contextlib.AbstractContextManager["_Workers"]):
    """The worker processes of one job. Beam would wait forever for the answer of one that has ended.

    Args:
      options: the result of `worker_options`, as JSON.
    """

    def __init__(self, options: str) -> None:
        self.options = options
        self._handlers: list[_ProcessHandler] = []
        self._reason = ""
        self._over = threading.Event()

    def make(self, command: bytes, state: Any, provision_info: Any, grpc_server: Any) -> _ProcessHandler:
        """Makes one more worker, for Beam's register of environments; `command` is for a shell."""
        return _ProcessHandler(self, state, provision_info, grpc_server)

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="watch workers", daemon=True).start()
        return self

    def _watch(self) -> None:
        # Again and again, since the runner may be about to ask for more.
        while not self._over.wait(_POLL_SECONDS):
            if reason := self._ended():
                self.fail(reason)

    def _ended(self) -> str:
        """Names the worker that has ended by itself, with the end of its log; empty where none has."""
        return next(filter(None, (handler.process.ended() for handler in list(self._handlers))), "")

    def fail(self, reason: str) -> None:
        """Fails the job now: the runner would first wait for the bundles of all workers."""
        for handler in list(self._handlers):
            handler.fail(reason)

    def enter(self, handler: _ProcessHandler) -> None:
        """Adds a worker that has been started."""
        self._handlers.append(handler)

    def leave(self, handler: _ProcessHandler) -> None:
        """Removes a worker that is going to end."""
        self._handlers.remove(handler)

    def settle(self) -> None:
        """Waits a moment for the end of a process to be known, in the first of several calls."""
        deadline = time.monotonic() + _NOTICE_SECONDS
        while not self._over.is_set():
            self._reason = self._ended()
            if self._reason or time.monotonic() >= deadline:
                self._over.set()
            time.sleep(0.02)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._over.set()
        if isinstance(error, Exception) and self._reason:
            raise WorkerEndedError(
                f"{self._reason}\nThe job has failed. If the log shows no cause, the kernel may have "
                "killed the process for lack of memory: run fewer processes."
            ) from None


class _ProcessHandler(worker_handlers.GrpcWorkerHandler):
    """One worker process, for the runner.

    Args:
      workers: those of the job.
      state: the runner's.
      provision_info: the runner's.
      grpc_server: the runner's, which the worker connects to.
    """

    def __init__(self, workers: _Workers, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._workers = workers
        self.control_conn._read_thread = threading.Thread(target=self._read, name=f"read {self.worker_id}")
        control, logs = self.control_api_service_descriptor(), self.logging_api_service_descriptor()
        self.process = ServerProcess(
            f"The worker process {self.worker_id}",
            [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"],
            worker_environment()
            | {
                "WORKER_ID": self.worker_id,
                "PIPELINE_OPTIONS": workers.options,
                "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(control),
                "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(logs),
            },
        )

    def host_from_worker(self) -> str:
        return HOST

    def _read(self) -> None:
        """Hands the answers of the worker on, as ControlConnection does."""
        assert self.control_conn._input is not None
        with contextlib.suppress(grpc.RpcError):  # of a process that has ended
            for answer in self.control_conn._input:
                self.control_conn._futures_by_id.pop(answer.instruction_id).set(answer)
                if answer.error:
                    self._workers.fail(answer.error)

    def start_worker(self) -> None:
        self.process.start()
        self._workers.enter(self)

    def fail(self, reason: str) -> None:
        """Answers every request that the runner waits for with an error."""
        for name, future in list(self.control_conn._futures_by_id.items()):
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=reason))

    def close(self) -> None:
        if not self.control_conn._futures_by_id:
            self._workers.leave(self)
            super().close()
            return
        # Work is under way: the job has failed or was interrupted, and nobody waits for the answer.
        self._workers.settle()
        self._workers.leave(self)
        self.data_conn._closed = True
        self.control_conn.push(worker_handlers.BeamFnControlServicer._DONE_MARKER)
        self.process.stop()

    def stop_worker(self) -> None:
        deadline = time.monotonic() + _EXIT_SECONDS
        while self.process.running and time.monotonic() < deadline:
            time.sleep(0.02)
        self.process.stop()
