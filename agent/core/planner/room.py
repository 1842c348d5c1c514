"""Whether the host can hold one more guest: what it has left, less what was promised to guests and not taken yet.

A running guest of 4 GiB that has touched 1 GiB may still take 3 GiB; only what is left beyond that can be promised.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.desired import MAX_DEVICES, VmSpec
from agent.core.limits import most_cpus
from agent.core.observed import HostMemory, Observed, VmState

MIB = 1 << 20

QEMU_MIB = 20
"""QEMU itself with a firmware that looks for something to boot, without the pages that all QEMUs share. This and what
follows was measured as anonymous memory beside the guest's RAM (smaps; QEMU 7.2, TCG): 16 to 20 MiB."""
CPU_MIB = 1
"""8 CPUs: 6 MiB more than one."""
DEVICE_MIB = 1
"""A disk, NIC or serial port; 8 disks or 8 NICs: 3 MiB."""
SCREEN_MIB = 4
"""A VGA with a VNC server and nobody looking: 3 MiB."""
UEFI_MIB = 24
"""The copies of the two flash chips, and what OVMF's start leaves: 18 MiB."""
TCG_MIB = 64
"""Code that TCG has translated, at most half the guest's memory: a Linux guest of 128 or of 1024 MiB had 65 MiB."""
PAGE_TABLES = 256
"""One byte for so many of the guest's: its pages have an entry of 8 bytes for each 4 KiB in QEMU's own page tables, and
one in KVM's (Linux, Documentation/virt/kvm/x86/mmu.rst)."""
QCOW2_TABLE, QCOW2_MAX_BYTES = 8192, 32 * MIB
"""A qcow2's tables are cached up to 32 MiB, one byte for 8 KiB of the disk (QEMU, docs/qcow2-cache.txt)."""

HEADROOM_MIB, HEADROOM_PART = 512, 16
"""What a QEMU may take beyond the estimate, twice over, before the kernel ends it: this, and a part of the guest's
memory. Screens that are looked at, requests to disks under way, page tables of guests inside the guest (KVM takes up to
2 % of the memory for them: Linux, arch/x86/kvm, KVM_PERMILLE_MMU_PAGES) are far less; pages of its images, which count
as well, are given up before anybody is ended."""
PLACE_MIB = DEVICE_MIB + QCOW2_MAX_BYTES // MIB
"""What may come to each of a guest's places while it runs: a disk, and the tables of a large one."""
TCG_MOST_MIB = 1536
"""TCG keeps up to 1 GiB of translated code (QEMU, tcg/region.c), and lists of it; few guests ever fill that."""

AGAIN_MIB = 64
"""How much more must be left before a guest is started that was refused: memory in use goes up and down."""


def overhead_bytes(spec: VmSpec, *, kvm: bool) -> int:
    """What a guest's QEMU takes beside the guest's memory, as an estimate that is rather too high than too low."""
    devices = len(spec.disks) + len(spec.nics) + len(spec.serials)
    tcg = spec.accel == "tcg" or (spec.accel == "auto" and not kvm)
    mib = (
        QEMU_MIB
        + CPU_MIB * most_cpus(spec)
        + DEVICE_MIB * devices
        + (SCREEN_MIB if spec.vnc is not False else 0)
        + (UEFI_MIB if spec.firmware == "uefi" else 0)
        + (min(TCG_MIB, spec.memory_mib // 2) if tcg else 0)
    )
    tables = [
        min(QCOW2_MAX_BYTES, (disk.size_bytes or 0) // QCOW2_TABLE) for disk in spec.disks if disk.format == "qcow2"
    ]
    return mib * MIB + spec.memory_mib * MIB // PAGE_TABLES + sum(tables)


def need_bytes(spec: VmSpec, *, kvm: bool) -> int:
    """All that a guest may take of the host's memory."""
    return spec.memory_mib * MIB + overhead_bytes(spec, kvm=kvm)


def memory_max_bytes(spec: VmSpec, *, kvm: bool) -> int:
    """The most that a guest's QEMU may take before it is ended alone: far more than a healthy one, less than a leak."""
    tcg = spec.accel == "tcg" or not kvm
    devices = len(spec.disks) + len(spec.nics)
    places = MAX_DEVICES if spec.machine == "pc" else devices + spec.hotplug_slots
    mib = (
        spec.memory_mib
        + HEADROOM_MIB
        + spec.memory_mib // HEADROOM_PART
        + PLACE_MIB * places
        + (TCG_MOST_MIB if tcg else 0)
    )
    return mib * MIB + 2 * overhead_bytes(spec, kvm=kvm)


class Room:
    """What is left in one pass; `take` books what is promised in it. Without figures of the host nothing is refused."""

    def __init__(self, wanted: Mapping[str, VmSpec], observed: Observed) -> None:
        self._wanted = wanted
        self._observed = observed
        self._promised: int | None = None

    def take(self, spec: VmSpec, instead_of: VmSpec | None = None) -> None:
        """Promise a guest, which is about to be started, what it needs; `instead_of` what it was promised already."""
        if (memory := self._observed.host.memory) is not None:
            before = 0 if instead_of is None else need_bytes(instead_of, kvm=memory.kvm)
            self._promised = self._promised_bytes(memory) + max(0, need_bytes(spec, kvm=memory.kvm) - before)

    def shortage(self, spec: VmSpec) -> str | None:
        """Why a guest cannot be started now, with the sum; None if it can."""
        memory = self._observed.host.memory
        if memory is None or spec.overcommit:
            return None
        overhead, promised = overhead_bytes(spec, kvm=memory.kvm), self._promised_bytes(memory)
        need = spec.memory_mib * MIB + overhead
        left = memory.available_bytes - promised
        again = AGAIN_MIB * MIB if spec.name in self._observed.short else 0
        if left >= need + again:
            return None
        return (
            f"needs {_mib(need)} MiB ({spec.memory_mib} and {_mib(overhead)} for its QEMU), {left // MIB} are left: "
            f"{memory.available_bytes // MIB} of {memory.source}, less {_mib(promised)} that guests may still take; it "
            f"starts once there are {_mib(need) + AGAIN_MIB}, or at once with overcommit = true"
        )

    def shortage_instead(self, spec: VmSpec, state: VmState) -> str | None:
        """Why a guest that runs could not be started as `spec` in its own place, with the sum; None if it could.

        One that needs no more than it runs with is not refused: what it may take was promised to it already.
        """
        memory = self._observed.host.memory
        if memory is None or spec.overcommit:
            return None
        need, present = need_bytes(spec, kvm=memory.kvm), need_bytes(state.spec, kvm=memory.kvm)
        if need <= present:
            return None
        taken = memory.resident_bytes.get(state.pid or 0, 0) if state.alive else 0
        others = self._promised_bytes(memory) - (max(0, present - taken) if state.alive else 0)
        left = memory.available_bytes + taken - others
        again = AGAIN_MIB * MIB if spec.name in self._observed.short else 0
        if left >= need + again:
            return None
        return (
            f"it needs {_mib(need)} MiB, {left // MIB} would be left without it: {memory.available_bytes // MIB} of "
            f"{memory.source} and {_mib(taken)} that it has, less {_mib(others)} that others may still take"
        )

    def _promised_bytes(self, memory: HostMemory) -> int:
        """What guests that run or are being started may still take, beyond what they have taken already."""
        if self._promised is None:
            vms, kvm = self._observed.vms, memory.kvm
            untouched = [
                max(0, self._need_bytes(state, kvm=kvm) - memory.resident_bytes.get(state.pid or 0, 0))
                for state in vms.values()
                if state.alive
            ]
            under_way = [
                need_bytes(spec, kvm=kvm)
                for resource, key in self._observed.in_flight.items()
                if key.startswith("launch-vm ")
                and (name := resource.removeprefix("vm/")) not in vms
                and (spec := self._wanted.get(name)) is not None
            ]
            self._promised = sum(untouched) + sum(under_way)
        return self._promised

    def _need_bytes(self, state: VmState, *, kvm: bool) -> int:
        """What a guest that runs may take; one that is being stopped to be started anew, with what it will need."""
        need, wanted = need_bytes(state.spec, kvm=kvm), self._wanted.get(state.spec.name)
        if not state.stopping or wanted is None or not wanted.enabled:
            return need
        intent = self._observed.intents.get(state.spec.name)
        return need if intent is not None and intent.stopped else max(need, need_bytes(wanted, kvm=kvm))


def _mib(size_bytes: int) -> int:
    """Rounded up: what is needed or promised is never told too small."""
    return -(-size_bytes // MIB)
