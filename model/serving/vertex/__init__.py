"""The model on Vertex AI: upload, deploy, split traffic, predict, look, take down."""
