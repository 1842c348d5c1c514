"""The spec that each guest last ran with, `ran/UUID.toml` in the state directory: what there is to fall back to.

Files of their own, because they change one at a time, and all of them together would be most of the state.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import tomli_w
from pydantic import TypeAdapter, ValidationError

from agent.core.desired import VmSpec
from agent.core.edits.digest import digest
from agent.host.statedir.durable import write_durably

_SPEC = TypeAdapter(VmSpec)


class RanSpecs:
    """Reads and writes them. Both block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}

    def keep(self, spec: VmSpec) -> None:
        """Write a guest's spec down, unless its launch would be the same; `OSError` leaves the former one in place."""
        if self._digests.get(spec.uuid) == digest(spec):
            return
        known = self.find(spec.uuid)
        if known is None or digest(known) != digest(spec):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            plain = _SPEC.dump_python(spec, mode="json", exclude_none=True)
            write_durably(self._path(spec.uuid), tomli_w.dumps(plain).encode())
        self._digests[spec.uuid] = digest(spec)

    def find(self, uuid: str) -> VmSpec | None:
        """The spec that a guest last ran with; None for one that never ran, or where it cannot be read."""
        try:
            return _SPEC.validate_python(tomllib.loads(self._path(uuid).read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError, RecursionError):
            return None

    def _path(self, uuid: str) -> Path:
        return self._folder / f"{uuid}.toml"
