"""Runs a command, and kills it without warning right before one of its changes in a directory.

    python -m tests.pipelines.killed DIRECTORY NUMBER anomaly batch ...

Renaming and removing a file count as changes, and so does no more.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from common.anomaly import main


def kill_before(directory: str, number: int) -> None:
    """Kills this process with SIGKILL before change `number`, counted from 1, of a path in `directory`."""
    count = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if str(path).startswith(directory) and "_temporary/" not in str(args[0] if args else path):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return change(path, *args, **kwargs)

        return call

    os.rename, os.remove = counted(os.rename), counted(os.remove)


if __name__ == "__main__":
    kill_before(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[4:]))
