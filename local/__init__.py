"""The local stack: emulators of Pub/Sub and BigQuery on this machine, and what Beam needs to use them.

Everything that adapts a part to this machine lives in this room: the emulators and their fixes (`stack`,
`bqemulator_patches`), gs:// in a directory (`gcs`), the streaming runner (`runner`), the demo (`demo`).
No other room of the product imports it. The others know only that a server may be at another address, by
PUBSUB_EMULATOR_HOST (`common.pubsub`) and BIGQUERY_EMULATOR_HOST (`transforms.clients`). Two say more:
`pipelines.streaming` names the runner as its default, and `anomaly resources --emulators` leaves out what an
emulator does not keep.

`anomaly local --help` starts the stack from a shell, `local.stack` from Python.
"""
