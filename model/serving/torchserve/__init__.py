"""TorchServe on a machine of its own: configuration, process, management API, gRPC client, the command."""
