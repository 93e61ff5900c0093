"""Cases that the tests of the Vertex AI commands share."""

PREBUILT = "us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest"
CUSTOM = "us-central1-docker.pkg.dev/p/anomaly/anomaly-serving:1"
PARENT = "/v1/projects/p/locations/us-central1"
NEWER = "20260202.080000"


def deploy(run, version, *flags):
    return run("deploy", "--name", "m", "--version", version, "--endpoint", "e", *flags)
