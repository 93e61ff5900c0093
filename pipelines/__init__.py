"""The batch and the streaming pipeline: their options, and the wiring of sources, transforms and sinks."""
