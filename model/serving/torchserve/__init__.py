"""TorchServe run by ourselves: configuration, process, management API, gRPC client, and the commands."""
