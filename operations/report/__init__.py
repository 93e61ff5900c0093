"""`anomaly report`: the state of a running system as one page, written to a file or served on this machine.

`queries` builds the SQL, `figures` reads the rows, `charts` computes the drawings, `sections` says
what the page shows, `page` writes it, `server` serves it.
"""
