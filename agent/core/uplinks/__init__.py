"""Uplinks moved safely: what a port carries, the requests that bring it to its bridge and back, and a move's states."""
