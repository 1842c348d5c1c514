"""The state directory: the agent's memory, the last good version of each unit file, and the good ones before it."""

from agent.host.statedir.directory import StateDirectory, StateRefusedError, lock_directory
from agent.host.statedir.history import UnitHistory, Version

__all__ = ["StateDirectory", "StateRefusedError", "UnitHistory", "Version", "lock_directory"]
