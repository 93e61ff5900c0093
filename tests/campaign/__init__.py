"""Faults of the real parts under a running pipeline, with a count in the tables afterwards.

`python -m tests.campaign` takes half an hour; `tests/test_campaign.py` runs short forms of it.
"""
