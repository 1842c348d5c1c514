"""The state directory: the agent's memory, the last good version of each unit file, and the good ones before it."""

from agent.host.statedir.directory import LaterStateError, StateDirectory, StateRefusedError, lock_directory
from agent.host.statedir.history import UnitHistory, Version

__all__ = ["LaterStateError", "StateDirectory", "StateRefusedError", "UnitHistory", "Version", "lock_directory"]
