"""The agent's own copies of the tap descriptors that guests hold: with them a deleted tap is healed unnoticed.

A copy refers to the same open file as QEMU's descriptor, so re-arming it re-arms QEMU's (dup(2), tuntap.rst).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from agent.core.errors import ActionError
from agent.core.observed import NicBackend, NicState
from agent.host.tap import TapSettings, attached_link, read_settings

NicKey = tuple[str, str]
"""A guest's name and its NIC's id."""


@dataclass(slots=True)
class Held:
    """A descriptor, and the settings that its tap had when they were last read; None if it was dead from the start."""

    fd: int
    settings: TapSettings | None = None


class Descriptors:
    """All descriptors by guest and NIC. They are closed when replaced or forgotten."""

    def __init__(self) -> None:
        self._held: dict[NicKey, Held] = {}

    def find(self, vm: str, nic: str) -> Held | None:
        """The descriptor of a NIC, None if the agent has none."""
        return self._held.get((vm, nic))

    def put(self, vm: str, nic: str, fd: int) -> None:
        """Take a descriptor over; a former one of this NIC is closed."""
        self._close(self._held.pop((vm, nic), None))
        held = Held(fd)
        self._held[vm, nic] = held
        with contextlib.suppress(ActionError):
            link = attached_link(fd)
            held.settings = read_settings(fd, link) if link else None

    def forget(self, vm: str, nic: str) -> None:
        """Close a NIC's descriptor, if there is one."""
        self._close(self._held.pop((vm, nic), None))

    def forget_guest(self, vm: str) -> None:
        """Close all descriptors of a guest."""
        for key in [key for key in self._held if key[0] == vm]:
            self._close(self._held.pop(key))

    def rename_guest(self, vm: str, new_name: str) -> None:
        """Carry a guest's descriptors over to its new name."""
        for key in [key for key in self._held if key[0] == vm]:
            self._held[new_name, key[1]] = self._held.pop(key)

    def close(self) -> None:
        """Close them all; guests have their own."""
        for held in self._held.values():
            self._close(held)
        self._held.clear()

    def state(self, vm: str, nic: str) -> NicState:
        """Where a NIC's descriptor leads."""
        held = self._held.get((vm, nic))
        if held is None:
            return NicState(NicBackend.UNKNOWN)
        try:
            link = attached_link(held.fd)
        except ActionError:
            return NicState(NicBackend.UNKNOWN)
        return NicState(NicBackend.DEAD) if link is None else NicState(NicBackend.ATTACHED, link)

    def read_settings(self, stated: frozenset[str]) -> None:
        """Read anew what the taps of these names must have again after a loss; a dead one keeps its last ones."""
        for held in self._held.values() if stated else ():
            with contextlib.suppress(ActionError):
                link = attached_link(held.fd)
                if link in stated:
                    held.settings = read_settings(held.fd, link)

    @staticmethod
    def _close(held: Held | None) -> None:
        if held is not None:
            os.close(held.fd)
