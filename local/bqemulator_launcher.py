"""Starts bqemulator with the cures of `bqemulator_patches`, and says on which ports it listens.

    python -m local.bqemulator_launcher --project=local-project --ready-file=/tmp/ready.json

The patches hold in this process alone; the installed package stays as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bqemulator.config import LogFormat, LogLevel, PersistenceMode, Settings
from bqemulator.server import EmulatorServer

from local import bqemulator_patches

_HOST: Final = "127.0.0.1"
_LARGEST_MESSAGE: Final = 256 * 1024 * 1024
_RPC_THREADS: Final = 128


def _settings(options: argparse.Namespace) -> Settings:
    mode = PersistenceMode.PERSISTENT if options.data_dir else PersistenceMode.EPHEMERAL
    return Settings(
        rest_host=_HOST,
        rest_port=options.rest_port,
        grpc_host=_HOST,
        grpc_port=options.grpc_port,
        persistence_mode=mode,
        data_dir=options.data_dir,
        gcs_local_root=options.gcs_root,
        default_project_id=options.project,
        upload_staging_dir=options.work_dir / "uploads",
        # It caps what ReadRows sends as well, and one answer holds a whole stream's record batch.
        write_api_max_request_bytes=_LARGEST_MESSAGE,
        # DuckDB's Avro reader would be downloaded at every start.
        enable_format_extensions=False,
        log_level=LogLevel.WARNING,
        log_format=LogFormat.CONSOLE,
    )


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    # Every open AppendRows stream holds a thread of this pool for as long as it lives. The default has
    # CPUs + 4: on two CPUs the seventh stream would wait for ever.
    loop.set_default_executor(ThreadPoolExecutor(_RPC_THREADS, thread_name_prefix="rpc"))
    stopped = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stopped.set)
    server = EmulatorServer(_settings(options))
    await server.start()
    partial = options.ready_file.with_suffix(".partial")
    partial.write_text(json.dumps({"rest": server.rest_port, "grpc": server.grpc_port}))
    partial.replace(options.ready_file)
    await stopped.wait()
    await server.stop()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the emulator until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", required=True, help="default project id")
    parser.add_argument("--rest-port", type=int, default=0, help="0 (default) picks a free one")
    parser.add_argument("--grpc-port", type=int, default=0, help="0 (default) picks a free one")
    parser.add_argument(
        "--ready-file", type=Path, required=True, help="written with the ports once they are open"
    )
    parser.add_argument("--work-dir", type=Path, required=True, help="directory for temporary files")
    parser.add_argument("--data-dir", type=Path, help="keep the data here (default: in memory)")
    parser.add_argument("--gcs-root", type=Path, help="directory that stands for gs://")
    options = parser.parse_args(argv)
    bqemulator_patches.apply()
    asyncio.run(_serve(options))
    # Open RPC streams hold threads of the pool, and Python would wait for them at exit.
    os._exit(0)


if __name__ == "__main__":
    main()
