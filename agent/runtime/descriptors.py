"""The agent's own copies of the tap descriptors that guests hold: with them a deleted tap is healed unnoticed.

A copy refers to the same open file as QEMU's descriptor, so re-arming it re-arms QEMU's (dup(2), tuntap.rst). The
service manager, if there is one, keeps another copy for the next agent, which then needs no rights over QEMU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from agent.core.desired import NicSpec
from agent.core.errors import ActionError
from agent.core.observed import NicBackend, NicState
from agent.host.notify import Notifier
from agent.host.tap import TapSettings, attached_link, open_tap, read_settings

NicKey = tuple[str, str]
"""A guest's name and its NIC's id."""


@dataclass(slots=True)
class Held:
    """A descriptor, and the settings that its tap had when they were last read; None if it was dead from the start."""

    fd: int
    settings: TapSettings | None = None


class Descriptors:
    """All descriptors by guest and NIC. They are closed when replaced or forgotten, also at the service manager."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._held: dict[NicKey, Held] = {}

    def find(self, vm: str, nic: str) -> Held | None:
        """The descriptor of a NIC, None if the agent has none."""
        return self._held.get((vm, nic))

    def of_tap(self, vm: str, uid: int, nic: NicSpec) -> int:
        """The descriptor of a NIC's tap: the one that made it, or a new one where an earlier agent did."""
        held = self._held.get((vm, nic.id))
        if held is None or attached_link(held.fd) != nic.tap:
            self.forget(vm, nic.id)
            self.put(vm, nic.id, open_tap(nic.tap, uid))
            held = self._held[vm, nic.id]
        return held.fd

    def put(self, vm: str, nic: str, fd: int) -> None:
        """Take a descriptor over; a former one of this NIC is closed."""
        self.forget(vm, nic)
        self._notifier.keep(_kept_name((vm, nic)), fd)
        self._hold((vm, nic), fd)

    def take_back(self, vm: str, nic: str) -> bool:
        """Take over what the service manager kept for a NIC; whether it kept something."""
        fd = self._notifier.take_kept(_kept_name((vm, nic)))
        if fd is not None:
            self._hold((vm, nic), fd)
        return fd is not None

    def drop_rest(self) -> None:
        """Close what the service manager kept and no guest took back: it would keep their taps attached."""
        self._notifier.drop_kept()

    def _hold(self, key: NicKey, fd: int) -> None:
        held = Held(fd)
        self._held[key] = held
        with contextlib.suppress(ActionError):
            link = attached_link(fd)
            held.settings = read_settings(fd, link) if link else None

    def forget(self, vm: str, nic: str) -> None:
        """Close a NIC's descriptor, if there is one."""
        self._drop([(vm, nic)] if (vm, nic) in self._held else [])

    def forget_guest(self, vm: str) -> None:
        """Close all descriptors of a guest."""
        self._drop([key for key in self._held if key[0] == vm])

    def _drop(self, keys: Sequence[NicKey]) -> None:
        for key in keys:
            os.close(self._held.pop(key).fd)
        self._notifier.release(*map(_kept_name, keys))

    def rename_guest(self, vm: str, new_name: str) -> None:
        """Carry a guest's descriptors over to its new name."""
        keys = [key for key in self._held if key[0] == vm]
        for key in keys:
            held = self._held.pop(key)
            self._held[new_name, key[1]] = held
            self._notifier.keep(_kept_name((new_name, key[1])), held.fd)
        self._notifier.release(*map(_kept_name, keys))

    def close(self) -> None:
        """Close them all; guests have their own, and the service manager keeps its copies."""
        for held in self._held.values():
            os.close(held.fd)
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


def _kept_name(key: NicKey) -> str:
    """What the service manager calls a descriptor; names of guests and NICs have no dot."""
    return f"tap.{key[0]}.{key[1]}"
