"""Which keys of a guest go together on which machine: each mistake at its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.unitfile.values import BadValueError, parse_memory, quoted

MAX_SERIALS = 30
"""What a virtio-serial controller has beside its port 0 (QEMU, `max_ports`)."""

Mistake = tuple[tuple[str | int, ...], str, str]
"""Keys inside the table, problem, hint."""


def platform_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """What does not fit the machine or the firmware of a guest's table, also of one that has other mistakes."""
    machine = table.get("machine", "q35")
    if table.get("secure-boot") is True:
        if table.get("firmware") != "uefi":
            yield ("secure-boot",), "secure-boot needs UEFI", 'add firmware = "uefi"'
        elif machine != "q35":
            yield ("secure-boot",), 'secure-boot needs machine = "q35"', ""
    yield from _serial_mistakes(table, machine)
    yield from _room_mistakes(table)
    if machine == "microvm":
        yield from _microvm_mistakes(table)


def _serial_mistakes(table: Mapping[str, object], machine: object) -> Iterator[Mistake]:
    ports = table.get("serial")
    if not isinstance(ports, dict):
        return
    if len(ports) > MAX_SERIALS:
        yield ("serial",), f"a guest has at most {MAX_SERIALS} serial ports, not {len(ports)}", ""
    holders: dict[str, str] = {}
    for name, serial in ports.items():
        port = serial.get("port", "virtio") if isinstance(serial, dict) else "virtio"
        if not isinstance(port, str) or not port.startswith("ttyS"):
            continue
        if machine == "microvm":
            problem = 'machine = "microvm" has no serial port beside its console'
            yield ("serial", str(name), "port"), problem, 'take port = "virtio"'
        elif (holder := holders.setdefault(port, str(name))) != name:
            yield ("serial", str(name), "port"), f"port {quoted(port)} is taken by {quoted(holder)}", ""


def _room_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """What a guest may be given or asked for while it runs, beside what it starts with."""
    cpus, most = table.get("cpus", 1), table.get("max-cpus")
    if isinstance(cpus, int) and isinstance(most, int) and most < cpus:
        yield ("max-cpus",), f"max-cpus must be at least cpus, which is {cpus}", f"did you mean {cpus}?"
    if "balloon" not in table:
        return
    try:
        memory, balloon = parse_memory(table.get("memory", "512M")), parse_memory(table["balloon"])
    except BadValueError:
        return  # told where the values are checked
    if balloon > memory:
        yield ("balloon",), f"balloon must be at most memory, which is {memory}M", "without the key it keeps all of it"
    arguments = table.get("extra-args")
    if isinstance(arguments, list) and any("virtio-balloon" in str(argument) for argument in arguments):
        yield ("balloon",), "balloon needs the guest's only balloon, and extra-args bring another", "take that out"


def _microvm_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """What a microvm lacks (QEMU, docs/system/i386/microvm.rst)."""
    if "kernel" not in table:
        problem = 'machine = "microvm" needs kernel: it boots from no disk'
        yield ("machine",), problem, 'add kernel = "/path/of/vmlinuz"'
    if table.get("firmware") == "uefi":
        yield ("firmware",), 'there is no UEFI for machine = "microvm"', 'take machine = "q35"'
    if "watchdog" in table:
        yield ("watchdog",), 'machine = "microvm" has no watchdog', 'take machine = "q35"'
    if "max-cpus" in table:
        yield ("max-cpus",), 'machine = "microvm" takes no CPUs while it runs', 'take machine = "q35"'
    nics = table.get("nic")
    for name, nic in nics.items() if isinstance(nics, dict) else ():
        model = nic.get("model", "virtio") if isinstance(nic, dict) else "virtio"
        if isinstance(model, str) and model != "virtio":
            problem = f'machine = "microvm" has virtio NICs only, not {quoted(model)}'
            yield ("nic", str(name), "model"), problem, ""
