"""Breaks the planner in every small way, and asks whether a test notices: `make mutants`."""
