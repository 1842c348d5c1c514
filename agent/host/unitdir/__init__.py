"""The unit directory: what is in it, and when it changes."""

from agent.host.unitdir.directory import UnitDirectory
from agent.host.unitdir.reading import DirectoryView, UnitContent, is_unit_name, read_directory, read_unit_file

__all__ = ["DirectoryView", "UnitContent", "UnitDirectory", "is_unit_name", "read_directory", "read_unit_file"]
