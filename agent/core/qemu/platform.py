"""What a guest has besides its disks and NICs: machine, firmware, entropy, watchdog, and the places of PCI devices.

PCI addresses never move: a guest's NICs and disks have a slot each. On q35 a slot is a PCIe root port, with spare ones
for what is plugged later; on other machines it is a place on the root bus. What belongs to the machine has fixed places
below the slots, so that adding or removing it moves nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from agent.core.allocation import PORTS_PER_DEVICE, ports_for
from agent.core.desired import VmSpec

Json = Mapping[str, object]

FIRST_SLOT_DEVICE = 0x08
"""PCI device number of slot 0; the numbers below it are kept for what belongs to the machine."""

PVPANIC_ADDRESS, ENTROPY_ADDRESS, WATCHDOG_ADDRESS, SERIAL_ADDRESS = "0x3", "0x4", "0x5", "0x6"

BALLOON, BALLOON_ADDRESS = "balloon", "0x3.1"
"""Every place below the slots is taken on some machine, so the balloon is the second function of pvpanic's."""

FIRMWARE_CODE, FIRMWARE_VARIABLES = "firmware-code", "firmware-variables"
"""The block nodes of a UEFI firmware's two flash chips."""

MICROVM = "microvm"
"""A machine without firmware tables of the PC, root ports and hot-plugging (QEMU, docs/system/i386/microvm.rst)."""

_WATCHDOG_ACTIONS = {"poweroff": "pause"}
"""QEMU's own `poweroff` exits at once with code 0, and who was not connected then never learns why: so the guest is
paused, its run state `watchdog` stays readable, and the planner ends it."""


def machine_option(spec: VmSpec) -> str:
    """The value of `-machine`. A firmware that protects its variables needs system management mode (OVMF's README)."""
    if spec.machine == MICROVM:
        return "microvm,pcie=on"
    if spec.firmware != "uefi":
        return spec.machine
    smm = ",smm=on" if spec.secure_boot else ""
    return f"{spec.machine}{smm},pflash0={FIRMWARE_CODE},pflash1={FIRMWARE_VARIABLES}"


def platform_options(spec: VmSpec) -> Iterable[str]:
    """What QEMU does at the guest's ends; and with Secure Boot, that only SMM may write to the flash."""
    watchdog = f",watchdog={_WATCHDOG_ACTIONS.get(spec.watchdog, spec.watchdog)}" if spec.watchdog else ""
    yield from ("-action", f"reboot=reset,shutdown=pause,panic=pause{watchdog}")
    if spec.secure_boot:
        yield from ("-global", "driver=cfi.pflash01,property=secure,value=on")


def platform_devices(spec: VmSpec) -> Iterable[str]:
    """The devices that belong to the machine, each at its fixed place, and the root ports for all others."""
    bus = root_bus(spec.machine)
    if spec.rng:
        yield from ("-object", json.dumps({"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"}))
    pvpanic: Json = {"driver": "pvpanic-pci", "id": "pvpanic", "bus": bus, "addr": PVPANIC_ADDRESS}
    yield from _device({**pvpanic, "multifunction": True} if has_balloon(spec) else pvpanic)
    if has_balloon(spec):
        # What the guest does not use is given back without being asked for, and a guest in need takes its memory again.
        gives = {"free-page-reporting": True, "deflate-on-oom": True}
        yield from _device(
            {"driver": "virtio-balloon-pci", "id": BALLOON, "bus": bus, "addr": BALLOON_ADDRESS, **gives}
        )
    if spec.rng:
        yield from _device(
            {"driver": "virtio-rng-pci", "id": "rng", "rng": "entropy", "bus": bus, "addr": ENTROPY_ADDRESS}
        )
    if spec.watchdog:
        yield from _device({"driver": "i6300esb", "id": "watchdog", "bus": bus, "addr": WATCHDOG_ADDRESS})
    for slot in range(number_of_root_ports(spec)):
        yield from _device(root_port(slot))


def has_balloon(spec: VmSpec) -> bool:
    """Whether a launch gives a guest its balloon: QEMU takes one only, and `extra-args` may bring another."""
    return not any("virtio-balloon" in argument for argument in spec.extra_args)


def _device(device: Json) -> Iterable[str]:
    return ("-device", json.dumps(device))


def root_bus(machine: str) -> str:
    """The id of a machine's root bus."""
    return "pci.0" if family(machine) == "pc" else "pcie.0"


def number_of_root_ports(spec: VmSpec) -> int:
    """How many root ports a guest has: whole PCI devices of eight, so that `hotplug-slots` are free at least.

    None but on q35. Where the PCI device numbers end there may be fewer spare ones.
    """
    if family(spec.machine) != "q35":
        return 0
    return ports_for([*(nic.slot for nic in spec.nics), *(disk.slot for disk in spec.disks)], spec.hotplug_slots)


def root_port_id(slot: int) -> str:
    """The id of a slot's root port."""
    return f"slot-{slot}"


def root_port(slot: int) -> Json:
    """The root port of a slot; id, chassis and address follow from the slot alone (QEMU, docs/pcie.txt)."""
    device, function = divmod(slot, PORTS_PER_DEVICE)
    return {
        "driver": "pcie-root-port",
        "id": root_port_id(slot),
        "bus": "pcie.0",
        "chassis": slot + 1,
        "port": slot,
        "addr": f"{FIRST_SLOT_DEVICE + device:#x}.{function}",
        "multifunction": function == 0,
    }


def place(machine: str, slot: int) -> Json:
    """Where a slot's device is plugged."""
    if family(machine) == "q35":
        return {"bus": root_port_id(slot), "addr": "0x0"}
    return {"bus": root_bus(machine), "addr": f"{FIRST_SLOT_DEVICE + slot:#x}"}


def family(machine: str) -> str:
    """The kind of a machine type, also of a versioned one: `q35` and `pc-q35-7.2`, `pc` and `pc-i440fx-7.2`."""
    if "q35" in machine:
        return "q35"
    return "pc" if machine == "pc" or machine.startswith("pc-i440fx") else machine
