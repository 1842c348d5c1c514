"""Real QEMUs with a screen and with CD-ROM drives: all is where the command line says, on each machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.desired import DiskSpec
from agent.host.launches import Launches
from tests.contract.test_qemu_launch import bus_of, root_bus
from tests.qemu import launched, paused_vm


@pytest.mark.parametrize("machine", ["q35", "pc"])
async def test_a_screen_is_in_its_place_and_listens(launches: Launches, machine: str) -> None:
    async with launched(launches, paused_vm(machine=machine, vnc=True)) as guest:
        monitor = await guest.monitor()
        assert (await root_bus(monitor)).items() >= {"screen": (2, 0), "usb": (7, 0), "pvpanic": (3, 0)}.items()
        (server,) = await monitor.execute("query-vnc-servers")
        assert [(one["family"], one["service"]) for one in server["server"]] == [
            ("unix", str(guest.directory / "vnc.sock"))
        ]
        assert (guest.directory / "vnc.sock").stat().st_uid == guest.spec.uid
    assert guest.log() == ""


@pytest.mark.parametrize("machine", ["q35", "pc", "microvm"])
async def test_drives_share_an_image_and_one_is_empty(launches: Launches, folder: Path, machine: str) -> None:
    iso = folder / "a.iso"
    iso.write_bytes(bytes(64 * 2048))
    iso.chmod(0o600)
    common = {"format": "raw", "read_only": True, "media": "cdrom"}
    sata = DiskSpec(id="sata", path=str(iso), slot=0, bus="sata", **common)  # type: ignore[arg-type]
    virtio = DiskSpec(id="virtio", path=str(iso), slot=1, bus="virtio", **common)  # type: ignore[arg-type]
    empty = DiskSpec(id="empty", path="", slot=2, bus="sata", **common)  # type: ignore[arg-type]
    first = paused_vm(machine=machine, disks=(sata, virtio, empty))
    second = paused_vm(name="db", machine=machine, disks=(sata,))
    async with launched(launches, first) as one, launched(launches, second) as other:
        for guest in (one, other):
            monitor = await guest.monitor()
            inserted = {
                block["qdev"].split("/")[-1]: (block.get("inserted") or {}).get("ro")
                for block in await monitor.execute("query-block")
            }
            wanted = {"disk-sata": True, "disk-virtio": True, "disk-empty": None}
            assert inserted == {f"disk-{disk.id}": wanted[f"disk-{disk.id}"] for disk in guest.spec.disks}
            buses = {disk.id: await bus_of(monitor, f"bus-{disk.id}") for disk in guest.spec.disks}
            root = {"q35": "", "pc": "pci.0", "microvm": "pcie.0"}[machine]
            assert buses == {disk.id: root or f"slot-{disk.slot}" for disk in guest.spec.disks}
    assert (one.log(), other.log()) == ("", "")
