"""Commands of the operator over the tables: named queries, replay of dead letters, models in use."""
