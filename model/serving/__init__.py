"""The model behind HTTP: a FastAPI container, TorchServe, Vertex AI endpoints."""
