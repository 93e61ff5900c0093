"""Judges the score on repeated splits, paired with baselines that are tuned on the same rows."""
