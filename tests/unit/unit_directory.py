"""A directory of unit files that change, resolved without a disk."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.core.allocation import Allocations
from agent.unitfile.parse import ParsedUnit, parse_unit
from agent.unitfile.resolve import Resolution, ResolveContext, UnitSource, resolve

SEED = uuid.UUID(int=7)
BRIDGE = "[bridge.br0]\n"


def vm(name: str, more: str = "", *, nic: str = "") -> str:
    """A guest, its further keys, and the keys of its NIC on br0."""
    return f'[vm.{name}]\n{more}\n[vm.{name}.nic.lan]\nbridge = "br0"\n{nic}\n'


@dataclass
class Directory:
    """Unit files that change, resolved as the agent does: each resolution remembers what the last one left behind."""

    files: dict[str, str] = field(default_factory=dict)
    good: Mapping[str, bytes] = field(default_factory=dict)
    last: Resolution | None = None

    def save(self, **files: str | None) -> Resolution:
        """Write files (None: remove) and resolve."""
        for name, text in files.items():
            if text is None:
                del self.files[name]
            else:
                self.files[name] = text
        return self.resolve()

    def resolve(self) -> Resolution:
        last = self.last
        context = ResolveContext(
            machine_id="machine",
            seed=SEED,
            allocations=last.allocations if last else Allocations(),
            incumbents=last.incumbents if last else {},
            retained={**last.desired.retained, **last.desired.bridges} if last else {},
        )
        sources = [
            UnitSource(parsed(name, text), parsed(name, self.good[name].decode()) if name in self.good else None)
            for name, text in self.files.items()
        ]
        self.last = resolve(sources, context)
        self.good = self.last.good
        return self.last


def parsed(name: str, text: str) -> ParsedUnit:
    return parse_unit(name, text.encode())


def said(resolution: Resolution) -> list[str]:
    return [str(error) for file in resolution.files for error in file.errors]


def states(resolution: Resolution) -> dict[str, str]:
    return {file.path: file.state for file in resolution.files}
