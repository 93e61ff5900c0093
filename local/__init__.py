"""The local stack: Pub/Sub and BigQuery on this machine, and what Beam needs to use them.

Everything that adapts a part to this machine lives in this room: the servers (`stack`), the embedded
Pub/Sub (`pubsub_server`), the fixes of the BigQuery emulator (`bqemulator_patches`), gs:// in a directory
(`gcs`), the runners (`runner`, `process_runner`), the demo (`demo`). No other room of the product imports
it. The others know only that a server may be at another address, by PUBSUB_EMULATOR_HOST (`common.pubsub`)
and BIGQUERY_EMULATOR_HOST (`common.clients`). Three say more: `pipelines.streaming` and
`pipelines.processes` name the runners of this room as their defaults, and `anomaly resources --emulators`
leaves out what an emulator does not keep.

`anomaly local --help` starts the stack from a shell, `local.stack` from Python.
"""
