"""The local stack: emulators of Pub/Sub and BigQuery on this machine, and what Beam needs to use them.

Everything that differs between a developer's machine and Google Cloud lives in this package, and nothing
outside it knows that an emulator is there. See `local.stack` for how to start it from Python and
`anomaly local --help` for how to start it from a shell.
"""
