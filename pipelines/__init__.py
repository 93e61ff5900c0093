"""Entry points: they wire sources, the shared transforms and sinks, and hold no logic of their own."""
