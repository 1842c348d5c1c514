"""A guest's further serial ports on QEMU's command line; the first one is its console.

Each port's place follows from its name alone: an ISA port is the one that the unit names, a virtio port is known to the
guest by its name (`/dev/virtio-ports/ID`; QEMU, docs/system/devices/virtio: virtserialport).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from agent.core.desired import SerialSpec, VmSpec
from agent.core.qemu.platform import SERIAL_ADDRESS, root_bus


def serial_name(serial_id: str) -> str:
    """The id of a port's device and of its character device; its socket or log is named so too."""
    return f"serial-{serial_id}"


def serial_socket(serial_id: str) -> str:
    """The name of a port's socket in the guest's run directory."""
    return f"{serial_name(serial_id)}.sock"


def serial_log(serial_id: str) -> str:
    """The name of a port's log in the guest's run directory."""
    return f"{serial_name(serial_id)}.log"


def serial_logs(spec: VmSpec) -> tuple[str, ...]:
    """The names of all logs of a guest's ports."""
    return tuple(serial_log(serial.id) for serial in spec.serials if serial.to == "file")


def serial_sockets(spec: VmSpec) -> tuple[str, ...]:
    """The names of all sockets of a guest's ports."""
    return tuple(serial_socket(serial.id) for serial in spec.serials if serial.to == "socket")


def serial_options(spec: VmSpec, folder: str, log_sets: Mapping[str, tuple[int, int]]) -> Iterable[str]:
    """All ports. `folder` has its commas doubled; `log_sets` gives set id and descriptor of each log by port."""
    if any(serial.port == "virtio" for serial in spec.serials):
        controller = {"driver": "virtio-serial-pci", "id": "serial", "bus": root_bus(spec.machine)}
        yield from ("-device", json.dumps({**controller, "addr": SERIAL_ADDRESS}))
    for serial in spec.serials:
        name = serial_name(serial.id)
        if serial.to == "file":
            set_id, fd = log_sets[serial.id]
            yield from ("-add-fd", f"set={set_id},fd={fd}")
            yield from ("-chardev", f"file,id={name},path=/dev/fdset/{set_id},append=on")
        else:
            path = f"{folder}/{serial_socket(serial.id)}"
            yield from ("-chardev", f"socket,id={name},path={path},server=on,wait=off")
        yield from ("-device", json.dumps(_device(serial)))


def _device(serial: SerialSpec) -> Mapping[str, object]:
    name = serial_name(serial.id)
    if serial.port == "virtio":
        return {"driver": "virtserialport", "id": name, "bus": "serial.0", "chardev": name, "name": serial.id}
    return {"driver": "isa-serial", "id": name, "chardev": name, "index": int(serial.port.removeprefix("ttyS"))}
