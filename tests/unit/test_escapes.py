"""extra-args, screens and CD-ROM drives: what units may say, what QEMU is told, and what that leaves unmoved."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from pydantic import TypeAdapter

from agent.core.desired import DiskSpec, VmSpec
from agent.core.edits.digest import PendingChange, pending_changes
from agent.core.qemu.argv import DiskSet, LaunchFiles, qemu_argv
from agent.core.qemu.cdrom import medium_node
from agent.core.qemu.display import vnc_port
from agent.unitfile.parse import parse_unit
from agent.unitfile.specs import vm_spec
from tests.unit.planning_world import WEB

FILES = LaunchFiles("/r/we,b", {"lan": (7,)}, {id_: DiskSet(1, (8,)) for id_ in ("root", "boot", "cd", "drivers")})
ROOT = DiskSpec("root", "/srv/web.raw", "raw", 3)
CD = DiskSpec("cd", "/srv/a.iso", "raw", 1, read_only=True, media="cdrom", bus="sata")
HATCH = replace(WEB, extra_args=("-device", "edu"))
SCREEN = "anybody who reaches it would be at the guest's screen and keyboard, without password or encryption"
TAKE = "take vnc = true, and `ssh -L` or `vmhost vnc NAME --listen PORT` to reach it"

MISTAKES = {
    'extra-args = ["-device", "edu", "-daemonize"]': "2:33: error: extra-args must not hold "
    '"-daemonize": the agent watches the very process that it starts',
    'extra-args = [\n  "--uuid", "x"]': '3:3: error: extra-args must not hold "--uuid": the guest is known by its '
    'uuid; write uuid = "…" in its table',
    'extra-args = ["-device edu"]': '2:15: error: extra-args must hold one argument in each string, not "-device edu" '
    '(write "-device", "edu")',
    'extra-args = "-S"': '2:1: error: extra-args must be an array of strings, not "-S" (write ["-S"])',
    f'extra-args = ["-m",\n "{"é" * 65_536}"]': "3:2: error: extra-args must be at most 131071 bytes, not 131072",
    'extra-args = ["-m", 3]': "2:21: error: extra-args must be a string, not 3 (write it in quotes)",
    "vnc = 1": '2:1: error: vnc must be true, false or a display such as "127.0.0.1:1", not 1 '
    '(did you mean "127.0.0.1:1"?)',
    'vnc = "localhost:2"': '2:1: error: vnc must be true, false or a display such as "127.0.0.1:1", not "localhost:2" '
    '(did you mean "127.0.0.1:2"?)',
    'vnc = "127.0.0.1:5901"': "2:1: error: vnc must be a display of 0 to 5899, which is port 5900 + display, not 5901 "
    '(did you mean "127.0.0.1:1"?)',
    'vnc = "0.0.0.0:1"': f'2:1: error: vnc must be on a loopback address, not "0.0.0.0:1": {SCREEN} ({TAKE})',
    'vnc = "[fd00::1]:1"': f'2:1: error: vnc must be on a loopback address, not "[fd00::1]:1": {SCREEN} ({TAKE})',
    'disk.cd = { media = "cdrom", size = "1G" }': '2:30: error: size is for disks, not for media = "cdrom"',
    'disk.cd = { media = "cdrom", iops = 5 }': '2:30: error: iops is for disks, not for media = "cdrom"',
    'disk.cd = { media = "cdrom", read-only = false }': '2:30: error: media = "cdrom" is always read-only',
    'disk.d = { path = "/d.raw", bus = "sata" }': '2:29: error: bus is for media = "cdrom": a disk is always on virtio',
    'disk.d = { path = "/d.iso" }': '2:12: error: path "/d.iso" does not tell the format (add media = "cdrom")',
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_mistakes(text: str, message: str) -> None:
    assert [str(error) for error in parse_unit("u", f"[vm.web]\n{text}\n".encode()).errors] == [f"u:{message}"]


def test_a_screen_needs_a_machine_that_has_one() -> None:
    errors = parse_unit("u", b'[vm.web]\nmachine = "microvm"\nkernel = "/k"\nvnc = true').errors
    assert str(errors[-1]) == 'u:4:1: error: vnc needs a machine with a screen, which microvm has not (machine = "q35")'


@pytest.mark.parametrize(
    "option",
    [
        "pidfile",
        "name",
        "runas",
        "run-with",
        "chroot",
        "sandbox",
        "action",
        "preconfig",
        "incoming",
        "no-reboot",
        "no-shutdown",
        "watchdog-action",
    ],
)
def test_what_the_agent_stands_on_is_refused_and_the_rest_is_not(option: str) -> None:
    assert parse_unit("u", f'[vm.web]\nextra-args = ["-{option}"]'.encode()).errors
    assert not parse_unit("u", f'[vm.web]\nextra-args = ["{option}", "-names", "-S", ""]'.encode()).errors


def arguments(spec: VmSpec, option: str) -> list[str]:
    return [value for name, value in pairwise(qemu_argv(spec, "qemu", FILES, kvm=False)) if name == option]


def devices(spec: VmSpec) -> dict[str, dict[str, object]]:
    return {device["id"]: device for device in map(json.loads, arguments(spec, "-device"))}


def test_extra_args_come_last_as_they_are() -> None:
    argv = qemu_argv(replace(WEB, extra_args=("-append", "a,b $(c)", "")), "qemu", FILES, kvm=False)
    assert argv[-3:] == ("-append", "a,b $(c)", "")


@pytest.mark.parametrize(("machine", "bus"), [("q35", "pcie.0"), ("pc", "pci.0")])
def test_a_screen_moves_nothing(machine: str, bus: str) -> None:
    plain = replace(WEB, machine=machine, disks=(ROOT, CD))
    before, after = devices(plain), devices(replace(plain, vnc=True))
    assert {id_: device for id_, device in after.items() if id_ in before} == before
    assert {id_: device for id_, device in after.items() if id_ not in before} == {
        "screen": {"driver": "VGA", "id": "screen", "bus": bus, "addr": "0x2"},
        "usb": {"driver": "qemu-xhci", "id": "usb", "bus": bus, "addr": "0x7"},
        "pointer": {"driver": "usb-tablet", "id": "pointer", "bus": "usb.0"},
    }
    taken = [device["addr"] for device in after.values() if device.get("bus") == bus]
    assert len(taken) == len(set(taken))


def test_where_a_screen_is() -> None:
    assert arguments(replace(WEB, vnc=True), "-vnc") == ["unix:/r/we,,b/vnc.sock"]
    assert arguments(replace(WEB, vnc="[::1]:7"), "-vnc") == ["[::1]:7"]
    assert arguments(WEB, "-vnc") == []
    assert (vnc_port("127.0.0.1:1"), vnc_port("[::1]:7")) == (("127.0.0.1", 5901), ("::1", 5907))


@pytest.mark.parametrize(
    ("machine", "bus", "place", "controller", "drive"),
    [
        ("q35", "sata", {"bus": "slot-1", "addr": "0x0"}, "ich9-ahci", "ide-cd"),
        ("q35", "virtio", {"bus": "slot-1", "addr": "0x0"}, "virtio-scsi-pci", "scsi-cd"),
        ("pc", "sata", {"bus": "pci.0", "addr": "0x9"}, "ich9-ahci", "ide-cd"),
    ],
)
def test_a_cdrom_has_a_controller_in_its_slot(
    machine: str, bus: str, place: dict[str, str], controller: str, drive: str
) -> None:
    found = devices(replace(WEB, machine=machine, disks=(replace(CD, bus=bus),)))
    assert found["bus-cd"] == {"driver": controller, "id": "bus-cd", **place}
    node = medium_node("cd", CD.path)
    plugged = {"driver": drive, "id": "disk-cd", "bus": "bus-cd.0", "drive": node, "serial": "cd", "bootindex": 2}
    assert found["disk-cd"] == plugged


def test_an_empty_drive_has_no_medium() -> None:
    spec = replace(WEB, disks=(replace(CD, path=""),))
    assert "drive" not in devices(spec)["disk-cd"]
    assert (arguments(spec, "-blockdev"), arguments(spec, "-add-fd")) == ([], [])


def test_firmware_tries_the_first_disk_then_the_first_cdrom() -> None:
    second = replace(CD, id="drivers", slot=2)
    spec = replace(WEB, disks=(second, CD, replace(ROOT, id="boot", slot=9), ROOT))
    assert {id_: one["bootindex"] for id_, one in devices(spec).items() if "bootindex" in one} == {
        "disk-root": 1,
        "disk-cd": 2,
    }
    kernel = replace(spec, kernel="/k")
    assert not [one for one in devices(kernel).values() if "bootindex" in one]


OLD_RECORD = {
    "name": "web",
    "uuid": "u",
    "uid": 7,
    "kernel": "/k",
    "append": "quiet",
    "disks": [{"id": "root", "path": "/srv/web.raw", "format": "raw", "slot": 3, "read_only": True}],
}


def test_a_guest_of_an_earlier_agent_is_not_pending() -> None:
    """A launch record that knows none of these keys means what a unit means that has none of them."""
    launched = TypeAdapter(VmSpec).validate_python(OLD_RECORD)
    text = '[vm.web]\nkernel = "/k"\nappend = "quiet"\ndisk.root = { path = "/srv/web.raw", read-only = true }'
    table = parse_unit("u", text.encode()).vms["web"]
    wanted = vm_spec("web", table, "u", uuid="u", uid=7, slots={"disk/root": 3}, mtus={}, after=())
    assert pending_changes(launched, wanted) == ()


def test_records_keep_what_a_unit_says() -> None:
    adapter = TypeAdapter(VmSpec)
    for vnc in (True, False, "127.0.0.1:1"):
        spec = replace(HATCH, vnc=vnc, disks=(CD,))
        again = adapter.validate_python(adapter.dump_python(spec, mode="json", exclude_none=True))
        assert (again, type(again.vnc)) == (spec, type(vnc))


def test_edits_are_pending_as_they_are_written() -> None:
    wanted = replace(HATCH, vnc=True, disks=(CD,))
    assert pending_changes(WEB, wanted) == (
        PendingChange("disk.cd", "", "/srv/a.iso"),
        PendingChange("extra-args", "", '["-device", "edu"]'),
        PendingChange("vnc", "false", "true"),
    )
    assert pending_changes(wanted, replace(wanted, disks=(replace(CD, path=""),))) == (
        PendingChange("disk.cd.path", "/srv/a.iso", ""),
    )
