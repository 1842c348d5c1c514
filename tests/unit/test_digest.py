"""Which edits of a unit wait for a restart, and how they are told."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from pydantic import TypeAdapter

from agent.core.desired import DiskSpec, NicSpec, Restart, SerialSpec, VmSpec
from agent.core.edits.digest import PendingChange, digest, pending_changes

LAN = NicSpec(id="lan", bridge="br-lan", mac="02:00:00:00:00:01", tap="web-lan", slot=0)
ROOT = DiskSpec(id="root", path="/srv/web.qcow2", format="qcow2", slot=1, size_bytes=1 << 30)
WEB = VmSpec(name="web", uuid="u", uid=7, nics=(LAN,), disks=(ROOT,))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (replace(WEB, memory_mib=1024), [("memory", "512M", "1G")]),
        (replace(WEB, memory_mib=1536, cpus=4), [("cpus", "1", "4"), ("memory", "512M", "1536M")]),
        (replace(WEB, append="quiet", kernel="/k"), [("append", "", "quiet"), ("kernel", "", "/k")]),
        (replace(WEB, disks=(replace(ROOT, cache="none"),)), [("disk.root.cache", "writeback", "none")]),
        (replace(WEB, disks=(replace(ROOT, read_only=True),)), [("disk.root.read-only", "false", "true")]),
        (replace(WEB, disks=(replace(ROOT, path="/b"),)), [("disk.root.path", "/srv/web.qcow2", "/b")]),
        (replace(WEB, serials=(SerialSpec("log"),)), [("serial.log", "", "virtio")]),
        (replace(WEB, rng=False), [("rng", "true", "false")]),
        (replace(WEB, firmware="uefi"), [("firmware", "bios", "uefi")]),
        (replace(WEB, watchdog="reset"), [("watchdog", "", "reset")]),
        (replace(WEB, disks=()), [("disk.root", "/srv/web.qcow2", "")]),
        (replace(WEB, nics=(replace(LAN, bridge="br-b"),)), [("nic.lan.bridge", "br-lan", "br-b")]),
        (replace(WEB, nics=(LAN, replace(LAN, id="dmz", mac="m"))), [("nic.dmz", "", "m")]),
        (replace(WEB, nics=(replace(LAN, rate_in_bps=10_000_000),)), [("nic.lan.rate-in", "", "10Mbit")]),
        (replace(WEB, nics=(replace(LAN, rate_out_bps=64_000),)), [("nic.lan.rate-out", "", "64kbit")]),
    ],
)
def test_pending(wanted: VmSpec, expected: list[tuple[str, str, str]]) -> None:
    assert pending_changes(WEB, wanted) == tuple(PendingChange(*change) for change in expected)
    assert digest(WEB) != digest(wanted)


@pytest.mark.parametrize(
    "wanted",
    [
        WEB,
        replace(WEB, name="www", file="b.toml", description="d", restart=Restart.ALWAYS, enabled=False),
        replace(WEB, after=("vm:db",), stop_timeout_s=5.0),
        replace(WEB, disks=(replace(ROOT, size_bytes=2 << 30),)),
    ],
)
def test_nothing_pending(wanted: VmSpec) -> None:
    assert pending_changes(WEB, wanted) == ()
    assert digest(WEB) == digest(wanted)


def test_keys_that_came_later_leave_running_guests_as_they_are() -> None:
    """An agent of before them launched this guest, and wrote this fingerprint and a record without them."""
    assert digest(WEB) == "d9f8de1939e87ec8"
    record = {"name": "web", "uuid": "u", "uid": 7, "nics": [asdict(LAN)], "disks": [asdict(ROOT)]}
    launched = TypeAdapter(VmSpec).validate_python(record)
    assert launched == WEB
    assert pending_changes(launched, WEB) == ()
