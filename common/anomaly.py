"""The one installed command. It imports a command only when that runs, so that --help is there at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from common.streams import ends_quietly


class Entry(NamedTuple):
    """One command: the module whose `main` runs it, and a line about it."""

    module: str
    line: str


COMMANDS: Final[dict[str, dict[str, Entry]]] = {
    "data": {
        "publish": Entry(
            "publisher.__main__", "send synthetic transactions to Pub/Sub, or write them to files"
        ),
    },
    "model": {
        "features": Entry("features.__main__", "write and check a feature spec: what the model sees"),
        "train": Entry("model.train", "train a model and write its artifact"),
        "model": Entry(
            "operations.models.__main__", "roll a model out, take it back, recalibrate, list models"
        ),
        "evaluate": Entry("model.evaluate", "judge a model on labelled transactions, beside baselines"),
        "package": Entry("model.package", "pack a model for TorchServe, as ONNX or torch.export"),
        "serve": Entry("model.serving.app", "serve a model over HTTP, as the container does"),
        "torchserve": Entry("model.serving.torchserve.__main__", "run TorchServe with a model, and ask it"),
        "vertex": Entry("model.serving.vertex.__main__", "upload, deploy and ask a model on Vertex AI"),
        "bigquery_ml": Entry(
            "model.serving.bigquery_ml", "write SQL by which BigQuery scores with the model"
        ),
    },
    "run": {
        "demo": Entry("local.demo", "run everything on this machine: train, publish, stream, batch, query"),
        "local": Entry("local.__main__", "start and stop Pub/Sub and BigQuery on this machine"),
        "batch": Entry("pipelines.batch", "score files or a BigQuery table"),
        "history": Entry("pipelines.history", "build the histories of accounts that a job begins with"),
        "streaming": Entry("pipelines.streaming", "score transactions from Pub/Sub as they come"),
    },
    "cloud": {
        "resources": Entry("cloud.resources.__main__", "create, compare and delete what a project needs"),
        "templates": Entry("templates.build", "build the image and the Flex templates"),
        "preflight": Entry("cloud.preflight", "check that everything a job needs is there"),
        "launch": Entry("cloud.launch", "launch, list, update, drain and cancel Dataflow jobs"),
        "cost": Entry("cloud.cost", "estimate the bill of a million transactions, every figure a flag"),
    },
    "look": {
        "query": Entry("operations.query", "ask the tables: anomalies, alert rates, dead letters, latency"),
        "watch": Entry("operations.watch", "judge drift and alerts by their limits, for a scheduler"),
        "report": Entry("operations.report.__main__", "show the state as a page: a file, or served here"),
        "replay": Entry("operations.replay", "send dead letters through again"),
    },
}


_STACK: Final = frozenset({"demo", "local"})
"""The commands that start emulators of their own, or are about to."""


def usage() -> str:
    """The help: every command in its group."""
    width = max(len(name) for group in COMMANDS.values() for name in group)
    lines = ["usage: anomaly COMMAND [OPTIONS]", "", "Anomaly detection on card transactions."]
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}  {entry.line}" for name, entry in group.items())]
    return "\n".join([*lines, "", "`anomaly COMMAND --help` shows options and examples."])


def _warn_of_stale_variables() -> None:
    from common.loopback import stale_variables

    if names := stale_variables():
        print(
            f"warning: {', '.join(names)}: nothing is there any more, as after `anomaly local down`. Start "
            f'the local stack with eval "$(anomaly local up)", or run: unset {" ".join(names)}',
            file=sys.stderr,
        )


@ends_quietly
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: runs the command that the first word names; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    entries = {name: entry for group in COMMANDS.values() for name, entry in group.items()}
    if words[0] not in entries:
        import difflib

        near = difflib.get_close_matches(words[0], entries, 1)
        hint = f"did you mean {near[0]}?" if near else "`anomaly --help` lists the commands"
        print(f"error: expected a command, got {words[0]!r}: {hint}", file=sys.stderr)
        return 2
    if not _STACK.issuperset(words[:1]) and not {"-h", "--help"} & set(words):
        _warn_of_stale_variables()
    # One try of 3 s at Google's metadata server, in place of three: a firewall may hide it. google-auth knows
    # a machine of Google by the name of its product where the server answers late.
    os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
    module = importlib.import_module(entries[words[0]].module)
    return int(module.main(words[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
