"""The settings: one table, and how their values are read."""
