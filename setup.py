"""Package definition: ranges here, the exact versions that were tested in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = (
    "cloud",
    "common",
    "features",
    "local",
    "model",
    "operations",
    "pipelines",
    "publisher",
    "templates",
    "transforms",
)
TRACES = [
    "opentelemetry-exporter-otlp>=1.30,<2",
    "opentelemetry-instrumentation-asgi>=0.51b0,<1",
    "opentelemetry-sdk>=1.30,<2",
]
EXPORT = ["onnx>=1.17,<2", "onnxruntime>=1.20,<2", "onnxscript>=0.5,<1"]

setup(
    name="beam-transaction-anomaly",
    version="0.1.0",
    description="Real-time anomaly detection on card transactions: Apache Beam, PyTorch, Google Cloud",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=[f"{name}{suffix}" for name in ROOMS for suffix in ("", ".*")]),
    include_package_data=True,
    package_data={
        "": [
            "*.java",
            "*.json",
            "*.properties",
            "*.yaml",
            "Dockerfile",
            "*.dockerignore",
            "requirements.txt",
        ],
        # Folders without modules are no packages: their files are named from the package above.
        "operations": ["queries/*.sql"],
        "operations.report": ["*.html", "*.css"],
        "templates": ["*/metadata.json"],
    },
    install_requires=[
        "apache-beam[gcp]>=2.77,<3",
        "faker>=40,<41",
        "google-api-core>=2.24,<3",
        "google-auth>=2.38,<3",
        "google-cloud-aiplatform>=1.165,<2",
        "google-cloud-bigquery>=3.40,<4",
        "google-cloud-bigquery-storage>=2.37,<3",
        "google-cloud-dataflow-client>=0.13,<1",
        "google-cloud-pubsub>=2.35,<3",
        "google-cloud-resource-manager>=1.14,<2",
        "google-cloud-storage>=2.19,<4",
        "googleapis-common-protos>=1.66,<2",
        "grpcio>=1.66,<2",
        "jinja2>=3.1.6,<4",
        "jsonschema>=4.23,<5",
        "msgspec>=0.19,<1",
        "numpy>=2,<3",
        "orjson>=3.11,<4",
        "protobuf>=5,<7",
        "pyarrow>=18",
        "pysimdjson>=7,<8",
        "pyyaml>=6,<7",
        "requests>=2.32,<3",
        "rich>=14,<16",
        "tenacity>=9,<10",
        "torch>=2.4,<3",
        "urllib3>=2,<3",
        "zstandard>=0.23,<1",
    ],
    extras_require={
        # The emulators of the local stack that come from PyPI, and what the demo draws and prints with.
        # Two exact versions: the local stack uses private parts of both, see local/versions.py.
        "local": [
            "apache-beam[gcp]>=2.77,<2.78",
            "bigquery-schema-generator>=1.6,<2",
            "bqemulator==1.4.0",
            "cryptography>=44",
            "duckdb>=1.4,<3",
            "matplotlib>=3.9,<4",
            "sqlglot>=28,<31",
        ],
        # Training, evaluation against baselines, and the TorchServe archive that is part of the artifact.
        "train": [
            "matplotlib>=3.9,<4",
            "scikit-learn>=1.6,<2",
            "scipy>=1.13,<2",
            "threadpoolctl>=3.5,<4",
            "torch-model-archiver==0.12.0",
        ],
        # More baselines for model.evaluate: HBOS and ECOD.
        "evaluate": ["pyod>=3,<4"],
        # ONNX from model.package, checked in onnxruntime.
        "export": EXPORT,
        # Servers of the model: the FastAPI container and TorchServe, which needs the pyyaml of above and does
        # not say so.
        "serve": [
            "fastapi>=0.165,<1",
            "httptools>=0.6.4,<1",
            "prometheus-client>=0.21,<1",
            "psutil>=6,<8",
            "starlette>=0.50,<2",
            "torch-model-archiver==0.12.0",
            "torchserve==0.12.0",
            "uvicorn>=0.37,<1",
            "uvloop>=0.21,<1",
        ],
        # Traces of the FastAPI container, where the variables of OpenTelemetry's SDK ask for them.
        "traces": TRACES,
        "test": [
            *EXPORT,
            *TRACES,
            "google-api-python-client>=2.180,<3",  # for Google's discovery documents that it has
            "hypothesis>=6.100",
            "mypy>=2,<3",
            "openapi-python-client>=0.28,<1",
            "packaging>=24",
            "promql-parser>=0.5,<1",
            "pytest>=9,<10",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "schemathesis>=4.20,<5",
            "vulture>=2.16,<3",
            "zetasql==0.1.5",
        ],
    },
    entry_points={"console_scripts": ["anomaly=common.anomaly:main"]},
)
