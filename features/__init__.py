"""The fields of a transaction: which of them the model sees, and how each becomes numbers.

`declaration` holds the spec, `default` that of the ULB table, `reading` its YAML file. `learnt` is what
training adds to it. `columns` encodes Arrow columns and `rows` Python objects, to the same float32 inputs.

`history` computes statistics of the earlier transactions of an account, and `words` says what a value means.

Below these, `roles` finds ids, accounts and times in messages and columns, `values` decides what is a number,
and `ranges` counts values outside of those of training. `ulb` names the 30 numbers of the default spec.

The archive for TorchServe takes `checks`, `declaration`, `kinds`, `learnt`, `roles`, `rows`, `schema`,
`times`, `values` and `words`: these run on Python 3.9, and need NumPy alone.
"""
