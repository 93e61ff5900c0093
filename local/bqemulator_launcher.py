"""Starts bqemulator with the fixes of `bqemulator_patches`, and writes its ports to DIR/ready.json.

    python -m local.bqemulator_launcher --project=local-project --work_dir=DIR

bqemulator has a command line of its own, but no hook for fixes. So this launcher makes the server from
Python. The fixes hold in this process alone; the installed package stays as it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bqemulator.config import LogFormat, LogLevel, PersistenceMode, Settings
from bqemulator.server import EmulatorServer

from common.command import CommandError, Parser, command
from common.options import add_options, option, read_options
from local import bqemulator_patches
from local.process import HOST, write_ready
from local.versions import check_version

_LARGEST_MESSAGE: Final = 256 * 1024 * 1024
_RPC_THREADS: Final = 128


@dataclass(frozen=True)
class LauncherOptions:
    """The options of one emulator process."""

    project: str = option(metavar="ID", help="default project id")
    work_dir: Path = option(type=Path, metavar="DIR", help="directory for ready.json and temporary files")
    rest_port: int = option(0, metavar="PORT", help="default: 0, any free one")
    grpc_port: int = option(0, metavar="PORT", help="default: 0, any free one")
    data_dir: Path | None = option(
        None, type=Path, metavar="DIR", help="directory that keeps the data (default: in memory)"
    )
    gcs_root: Path | None = option(None, type=Path, metavar="DIR", help="directory that stands for gs://")


def _settings(options: LauncherOptions) -> Settings:
    mode = PersistenceMode.PERSISTENT if options.data_dir else PersistenceMode.EPHEMERAL
    return Settings(
        rest_host=HOST,
        rest_port=options.rest_port,
        grpc_host=HOST,
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


async def _serve(options: LauncherOptions) -> None:
    loop = asyncio.get_running_loop()
    # Every open AppendRows stream holds a thread of this pool for as long as it lives. The default has
    # CPUs + 4: on two CPUs the seventh stream would wait forever.
    loop.set_default_executor(ThreadPoolExecutor(_RPC_THREADS, thread_name_prefix="rpc"))
    stopped = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stopped.set)
    server = EmulatorServer(_settings(options))
    await server.start()
    write_ready(options.work_dir, rest=server.rest_port, grpc=server.grpc_port)
    await stopped.wait()
    await server.stop()


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the emulator until SIGTERM or SIGINT."""
    parser = Parser("python -m local.bqemulator_launcher", __doc__)
    add_options(parser, LauncherOptions)
    options = read_options(LauncherOptions, parser.parse_args(argv))
    if error := check_version("bqemulator"):
        raise CommandError(error)
    bqemulator_patches.apply()
    asyncio.run(_serve(options))
    # Open RPC streams hold threads of the pool, and Python would wait for them at exit.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
