"""The agent's own copies of the tap descriptors that guests hold: with them a deleted tap is healed unnoticed.

A copy refers to the same open file as QEMU's descriptor, so re-arming it re-arms QEMU's (dup(2), tuntap.rst). The
service manager, if there is one, keeps another copy for the next agent, which then needs no rights over QEMU.

A NIC with several queues has a descriptor for each. All are had, or none: half of them heal nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.core.desired import NicSpec
from agent.core.errors import ActionError, TransientError
from agent.core.observed import NicBackend, NicState
from agent.host.notify import Notifier
from agent.host.tap import TapSettings, attached_link, attachment, close_all, open_tap, read_settings

NicKey = tuple[str, str]
"""A guest's name and its NIC's id."""


@dataclass(slots=True)
class Held:
    """The descriptors of a NIC, one a queue, in QEMU's order.

    `settings` are those that the tap had when they were last read, None if it was dead from the start; `detached` the
    queues, by their place, that the guest had switched off when the tap was last seen alive. `direct`: it is a macvtap.
    """

    fds: tuple[int, ...]
    direct: bool = False
    settings: TapSettings | None = None
    detached: frozenset[int] = field(default_factory=frozenset)


class Descriptors:
    """All descriptors by guest and NIC. They are closed when replaced or forgotten, also at the service manager."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._held: dict[NicKey, Held] = {}

    def find(self, vm: str, nic: str) -> Held | None:
        """The descriptors of a NIC, None if the agent has none."""
        return self._held.get((vm, nic))

    def of_tap(self, vm: str, uid: int, nic: NicSpec) -> tuple[int, ...]:
        """The descriptors of a NIC's tap: those that made it, or new ones where an earlier agent did.

        `TransientError` `NoDescriptor` for a macvtap, whose device only its maker knows how to open.
        """
        held = self._held.get((vm, nic.id))
        if held is None or len(held.fds) != nic.queues or any(attached_link(fd) != nic.tap for fd in held.fds):
            if nic.direct:
                raise TransientError(f"no descriptor of {nic.tap} is at hand", reason="NoDescriptor")
            self.forget(vm, nic.id)
            self.put(vm, nic, open_tap(nic.tap, uid, nic.queues))
            held = self._held[vm, nic.id]
        return held.fds

    def opened(self) -> frozenset[str]:
        """The macvtaps that descriptors of all queues are attached to."""
        own = [{_link_of(fd) for fd in held.fds} for held in self._held.values() if held.direct]
        return frozenset(link for links in own if len(links) == 1 for link in links if link is not None)

    def put(self, vm: str, nic: NicSpec, fds: Sequence[int]) -> None:
        """Take descriptors over; former ones of this NIC are closed."""
        key = vm, nic.id
        self.forget(*key)
        for name, fd in zip(_kept_names(key, len(fds)), fds, strict=True):
            self._notifier.keep(name, fd)
        self._hold(key, Held(tuple(fds), bool(nic.direct)))

    def take_back(self, vm: str, nic: NicSpec) -> bool:
        """Take over what the service manager kept for a NIC; whether it kept all of it."""
        found = [self._notifier.take_kept(name) for name in _kept_names((vm, nic.id), nic.queues)]
        fds = tuple(fd for fd in found if fd is not None)
        if len(fds) < nic.queues:
            close_all(fds)
            return False
        self._hold((vm, nic.id), Held(fds, bool(nic.direct)))
        return True

    def drop_rest(self) -> None:
        """Close what the service manager kept and no guest took back: it would keep their taps attached."""
        self._notifier.drop_kept()

    def _hold(self, key: NicKey, held: Held) -> None:
        self._held[key] = held
        with contextlib.suppress(ActionError):
            link = attached_link(held.fds[0])
            held.settings = read_settings(held.fds[0], link) if link else None

    def forget(self, vm: str, nic: str) -> None:
        """Close a NIC's descriptors, if there are any."""
        self._drop([(vm, nic)] if (vm, nic) in self._held else [])

    def forget_guest(self, vm: str) -> None:
        """Close all descriptors of a guest."""
        self._drop([key for key in self._held if key[0] == vm])

    def _drop(self, keys: Sequence[NicKey]) -> None:
        names: list[str] = []
        for key in keys:
            fds = self._held.pop(key).fds
            close_all(fds)
            names.extend(_kept_names(key, len(fds)))
        self._notifier.release(*names)

    def rename_guest(self, vm: str, new_name: str) -> None:
        """Carry a guest's descriptors over to its new name."""
        names: list[str] = []
        for key in [key for key in self._held if key[0] == vm]:
            held = self._held.pop(key)
            self._held[new_name, key[1]] = held
            for name, fd in zip(_kept_names((new_name, key[1]), len(held.fds)), held.fds, strict=True):
                self._notifier.keep(name, fd)
            names.extend(_kept_names(key, len(held.fds)))
        self._notifier.release(*names)

    def close(self) -> None:
        """Close them all; guests have their own, and the service manager keeps its copies."""
        for held in self._held.values():
            close_all(held.fds)
        self._held.clear()

    def state(self, vm: str, nic: str) -> NicState:
        """Where a NIC's descriptors lead: dead if any of them does, because its guest uses each."""
        held = self._held.get((vm, nic))
        if held is None:
            return NicState(NicBackend.UNKNOWN)
        try:
            found = [attachment(fd) for fd in held.fds]
        except ActionError:
            return NicState(NicBackend.UNKNOWN)
        link = next((one.link for one in found if one is not None), None)
        if any(one is None for one in found):
            return NicState(NicBackend.DEAD, link)
        held.detached = frozenset(place for place, one in enumerate(found) if one is not None and one.detached)
        return NicState(NicBackend.ATTACHED, link)

    def detached(self, vm: str) -> Mapping[str, tuple[int, ...]]:
        """Of a guest's NICs with several queues, the places of those that are switched off, as of the last look."""
        several = {key[1]: held for key, held in self._held.items() if key[0] == vm and len(held.fds) > 1}
        return {nic: tuple(sorted(held.detached)) for nic, held in several.items()}

    def recall_detached(self, vm: str, detached: Mapping[str, tuple[int, ...]]) -> None:
        """Take what an earlier agent saw of a guest's queues, for a tap that is lost; of a living one the next look."""
        for nic, places in detached.items():
            held = self._held.get((vm, nic))
            if held is not None:
                held.detached = frozenset(places)

    def read_settings(self, stated: frozenset[str]) -> None:
        """Read anew what the taps of these names must have again after a loss; a dead one keeps its last ones."""
        for held in self._held.values() if stated else ():
            with contextlib.suppress(ActionError):
                link = attached_link(held.fds[0])
                if link in stated:
                    held.settings = read_settings(held.fds[0], link)


def _link_of(fd: int) -> str | None:
    with contextlib.suppress(ActionError):
        return attached_link(fd)
    return None


def _kept_names(key: NicKey, queues: int) -> Iterator[str]:
    """What the service manager calls descriptors, one a queue; names of guests and NICs have no dot."""
    numbers: Iterable[str] = ("", *(f".{number}" for number in range(1, queues)))
    return (f"tap.{key[0]}.{key[1]}{number}" for number in numbers)
