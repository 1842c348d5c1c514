"""Carries out the actions on guests and their disks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from agent.core.actions import CreateDisk, EndVm, LaunchVm, RenameVm, ReplugNic, ResetVm, StopVm
from agent.core.digest import digest
from agent.core.errors import TransientError
from agent.core.memory import with_end, with_restart, with_stop
from agent.core.observed import End
from agent.core.qemu_argv import LaunchFiles, nic_device, nic_netdev, qemu_argv
from agent.host.disks import create_disk, open_disk, prepare_boot_file
from agent.host.launches import LaunchRecord, Launches
from agent.host.processes import kvm_usable, spawn
from agent.host.tap import attached_link, open_tap
from agent.runtime.clock import now_s
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
