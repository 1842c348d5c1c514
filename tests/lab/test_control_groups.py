"""What the kernel makes of a guest's limits where systemd has all controllers of control groups: in the virtual lab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.core.desired import VmSpec
from agent.core.planner.room import memory_max_bytes
from tests.exposition import samples_of, text_families
from tests.lab.service import UNIT, Service

GROUPS = "/sys/fs/cgroup/vmhost.slice"
BOOT_FILES = "/var/cache/vmhost/lab"
# It is emulated twice. Before its kernel has got far enough to say a word, it has touched more than OVER_BYTES.
FAT = f"""[vm.fat]
memory = "128M"
accel = "tcg"
kernel = "{BOOT_FILES}/vmlinuz"
initrd = "{BOOT_FILES}/initramfs.img"
append = "console=ttyS0 quiet init_on_alloc=0 panic=-1"
stop-timeout = "1s"
"""
MIB = 1 << 20
THIN = '[vm.{name}]\nmemory = "32M"\naccel = "tcg"\nstop-timeout = "1s"\n'
LIMITED = 'cpu-weight = 200\ncpu-quota = "20%"\nio-weight = 50\ntasks = 90\n'


def read(service: Service, vm: str, file: str) -> str:
    """A file of a guest's control group."""
    return service.lab.output(f"cat {GROUPS}/vmhost-vm-{vm}.service/{file}").strip()


def guest(service: Service, name: str) -> Mapping[str, Any]:
    """What `vmhost status` says of a guest."""
    found: list[Mapping[str, Any]] = [vm for vm in service.status()["vms"] if vm["name"] == name]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope="module")
def neighbours(virtual_service: Service) -> Iterator[Service]:
    """Two guests without a kernel, which run; the second has all limits."""
    virtual_service.lab.write("/etc/vmhost.d/one.toml", THIN.format(name="one").encode())
    virtual_service.lab.write("/etc/vmhost.d/two.toml", (THIN.format(name="two") + LIMITED).encode())
    try:
        for name in ("one", "two"):
            virtual_service.wait("running", name)
        virtual_service.wait_settled()
        yield virtual_service
    finally:
        virtual_service.lab.output("rm -f /etc/vmhost.d/one.toml /etc/vmhost.d/two.toml")
        virtual_service.wait_gone({"one", "two"})


def test_the_kernel_was_told_each_limit(neighbours: Service) -> None:
    assert read(neighbours, "two", "cpu.weight") == "200"
    assert read(neighbours, "two", "cpu.max") == "20000 100000"
    assert read(neighbours, "two", "io.weight") == "default 50"
    assert read(neighbours, "two", "pids.max") == "90"
    assert guest(neighbours, "two")["conditions"] == []
    for name in ("one", "two"):
        most = memory_max_bytes(VmSpec(name, "u", 1, memory_mib=32, accel="tcg"), kvm=False)
        assert read(neighbours, name, "memory.max") == str(most)


def test_an_edit_reaches_the_kernel_without_a_restart(neighbours: Service) -> None:
    pids = neighbours.pids()
    edited = LIMITED.replace("200", "30").replace("20%", "150%").replace("io-weight = 50", "io-weight = 500")
    neighbours.lab.write("/etc/vmhost.d/two.toml", (THIN.format(name="two") + edited).encode())
    neighbours.wait_settled()
    assert read(neighbours, "two", "cpu.weight") == "30"
    assert read(neighbours, "two", "cpu.max") == "150000 100000"
    assert read(neighbours, "two", "io.weight") == "default 500"
    neighbours.lab.write("/etc/vmhost.d/two.toml", (THIN.format(name="two") + LIMITED).encode())
    neighbours.wait_settled()
    assert read(neighbours, "two", "cpu.max") == "20000 100000"
    assert neighbours.pids() == pids


def pressure(service: Service, vm: str) -> dict[str, float]:
    """What the metrics say that a guest waited for each resource, in seconds."""
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9177/metrics', timeout=60).read().decode())"
    found = samples_of(text_families(service.lab.output(f'python3 -c "{fetch}"').encode()))
    name = "vmhost_vm_pressure_seconds_total"
    labels = [(dict(labels), value) for (series, labels), value in found.items() if series == name]
    return {label["resource"]: value for label, value in labels if label["vm"] == vm}


def test_a_guest_held_back_by_its_quota_shows_as_pressure(neighbours: Service) -> None:
    """A firmware that looks for something to boot wants a whole CPU, and has a fifth of one."""
    neighbours.lab.wait_until(
        lambda: pressure(neighbours, "two").get("cpu", 0) > 0, "the pressure to be told", timeout_s=300
    )
    assert set(pressure(neighbours, "two")) == {"cpu", "memory", "io"}
    # PSI counts the whole group, and only ever on.
    counted_us = read(neighbours, "two", "cpu.pressure").partition("\n")[0].rpartition("total=")[2]
    assert pressure(neighbours, "one").keys() == {"cpu", "memory", "io"}
    assert pressure(neighbours, "two")["cpu"] > 0
    assert int(counted_us) > 0


@pytest.fixture
def fat(neighbours: Service, guest_kernel: Path, guest_initrd: Path) -> Iterator[Service]:
    """A guest that boots a Linux, just started."""
    lab = neighbours.lab
    for file in (guest_kernel, guest_initrd):
        lab.copy_in(file, f"{BOOT_FILES}/{file.name}")
    lab.write("/etc/vmhost.d/fat.toml", FAT.encode())
    try:
        neighbours.wait("running", "fat")
        yield neighbours
    finally:
        lab.output("rm -f /etc/vmhost.d/fat.toml")
        neighbours.wait_gone({"fat"})


def test_a_guest_over_its_memory_limit_ends_alone_and_is_told_as_oom(fat: Service) -> None:
    before, agent = fat.pids(), fat.property("MainPID")
    # Its own limit is more than this machine has. With 8 MiB left, its boot takes it over the limit soon.
    left = f"echo $(($(cat memory.current) + {8 * MIB})) >memory.max"
    fat.lab.output(f"cd {GROUPS}/vmhost-vm-fat.service && {left}")
    fat.lab.wait_until(
        lambda: guest(fat, "fat")["pid"] not in {None, before["fat"]}, "it to be ended and started anew", 600
    )
    fat.wait("running", "fat")
    after = fat.pids()
    assert {name: pid for name, pid in after.items() if name != "fat"} == {
        name: pid for name, pid in before.items() if name != "fat"
    }
    assert fat.property("MainPID") == agent
    assert fat.property("NRestarts") == "0"
    told = [event for event in fat.events() if "fat (oom)" in str(event)]
    assert told, fat.events()
    assert {event.get("resource") for event in told} == {"vm/fat"}
    assert "it ended once: oom after" in fat.lab.output("vmhost why fat")
    assert guest(fat, "fat")["restarts"] == 1
    assert fat.lab.output(f"systemctl is-active {UNIT}").strip() == "active"
    # The new one has the limit of its spec again.
    assert int(read(fat, "fat", "memory.max")) == memory_max_bytes(
        VmSpec("fat", "u", 1, memory_mib=128, accel="tcg"), kvm=False
    )
