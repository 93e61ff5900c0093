"""Commands of the operator over the tables: named queries, the report of a run, replay of dead letters."""
