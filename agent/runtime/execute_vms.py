"""Carries out the actions on guests and their disks."""

from __future__ import annotations

from agent.host.launches import Launches
from agent.runtime.descriptors import Descriptors
from agent.runtime.guests import Guests
from agent.runtime.keeper import Keeper


class VmExecutor:
    """Each method does one action and returns when the guest's state shows it, or raises an ActionError."""

    def __init__(self, launches: Launches, guests: Guests, descriptors: Descriptors, keeper: Keeper, qemu: str) -> None:
        self._launches = launches
        self._guests = guests
        self._descriptors = descriptors
        self._keeper = keeper
        self._qemu = qemu
