"""The feature spec: which fields of a transaction the model sees, and how each becomes numbers.

`declaration` holds the spec, `default` that of the ULB table, `reading` its YAML file. `learnt` is what
training adds to it. `columns` encodes Arrow columns and `rows` Python objects, to the same float32 inputs.

The archive for TorchServe takes `kinds`, `declaration`, `checks`, `learnt`, `times` and `rows`: these run on
Python 3.9, and need NumPy alone.
"""
