"""The history of an account, or of another key: statistics of its earlier transactions as features.

`plan` lays out the state of a key, `state` holds it for many keys, `rows` reads what statistics need, and
`update` computes features and the new state. None of them knows Beam: stream, batch and training call them.
"""
