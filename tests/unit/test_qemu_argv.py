"""The exact command lines of QEMU: a change here is a change of every guest's hardware."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from agent.core.desired import DiskSpec, NicSpec, SerialSpec, VmSpec
from agent.core.qemu.argv import (
    DiskSet,
    FirmwareSets,
    LaunchFiles,
    disk_blockdev,
    disk_device,
    nic_device,
    nic_netdev,
    qemu_argv,
    wants_vhost,
)
from agent.core.qemu.platform import number_of_root_ports, root_port

UUID = "5f2f2b9c-7f0c-4e35-9a56-0d7b6a3f0f11"
LAN = NicSpec(id="lan", bridge="br-lan", mac="02:00:00:00:00:01", tap="web-lan", slot=0, mtu=1400)
ROOT = DiskSpec(id="root", path="/srv/web.qcow2", format="qcow2", slot=1)
SWAP = DiskSpec(id="swap", path="/srv/s.raw", format="raw", slot=9, cache="none", read_only=True, discard=False)
WEB = VmSpec(name="web", uuid=UUID, uid=7, cpus=2, memory_mib=1024, accel="tcg", nics=(LAN,), disks=(ROOT, SWAP))
FILES = LaunchFiles("/run/vmhost/vms/web", {"lan": (7,)}, {"root": DiskSet(0, (8, 9)), "swap": DiskSet(1, (10,), True)})


def options(argv: tuple[str, ...], option: str) -> list[str]:
    return [value for name, value in pairwise(argv) if name == option]


def devices(argv: tuple[str, ...]) -> dict[str, dict[str, object]]:
    return {device["id"]: device for device in map(json.loads, options(argv, "-device"))}


def test_golden_firmware_only() -> None:
    spec = replace(WEB, machine="pc", nics=(), disks=(), cpu="qemu64")
    assert " ".join(qemu_argv(spec, "/usr/bin/qemu", LaunchFiles("/r/web"), kvm=False)) == (
        f"/usr/bin/qemu -name guest=web -uuid {UUID} -S -nodefaults -no-user-config -display none -msg timestamp=on "
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny "
        "-trace enable=qemu_system_shutdown_request "
        "-machine pc -accel tcg -cpu qemu64 -smp 2 -m 1024M -action reboot=reset,shutdown=pause,panic=pause "
        "-pidfile /r/web/qemu.pid "
        "-chardev socket,id=qmp,path=/r/web/qmp.sock,server=on,wait=off "
        "-chardev socket,id=operator,path=/r/web/operator.sock,server=on,wait=off "
        "-chardev socket,id=console,path=/r/web/console.sock,server=on,wait=off "
        "-mon chardev=qmp,mode=control -mon chardev=operator,mode=control -serial chardev:console "
        '-object {"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"} '
        '-device {"driver": "pvpanic-pci", "id": "pvpanic", "bus": "pci.0", "addr": "0x3", "multifunction": true} '
        '-device {"driver": "virtio-balloon-pci", "id": "balloon", "bus": "pci.0", "addr": "0x3.1", '
        '"free-page-reporting": true, "deflate-on-oom": true} '
        '-device {"driver": "virtio-rng-pci", "id": "rng", "rng": "entropy", "bus": "pci.0", "addr": "0x4"}'
    )


def test_golden_disks_and_nics() -> None:
    argv = qemu_argv(WEB, "qemu", FILES, kvm=False)
    begin = argv.index("-add-fd")
    assert " ".join(argv[begin:]) == (
        "-add-fd set=0,fd=8,opaque=disk-root -add-fd set=0,fd=9,opaque=disk-root "
        '-blockdev {"driver": "qcow2", "node-name": "disk-root", "read-only": false, "discard": "unmap", '
        '"cache": {"direct": false, "no-flush": false}, "file": {"driver": "file", "node-name": "file-root", '
        '"filename": "/dev/fdset/0", "read-only": false, "discard": "unmap", '
        '"cache": {"direct": false, "no-flush": false}}} '
        '-device {"driver": "virtio-blk-pci", "id": "disk-root", "drive": "disk-root", "serial": "root", '
        '"write-cache": "on", "bus": "slot-1", "addr": "0x0", "bootindex": 1} '
        "-add-fd set=1,fd=10,opaque=disk-swap "
        '-blockdev {"driver": "raw", "node-name": "disk-swap", "read-only": true, "discard": "ignore", '
        '"cache": {"direct": true, "no-flush": false}, "file": {"driver": "host_device", "node-name": "file-swap", '
        '"filename": "/dev/fdset/1", "read-only": true, "discard": "ignore", '
        '"cache": {"direct": true, "no-flush": false}}} '
        '-device {"driver": "virtio-blk-pci", "id": "disk-swap", "drive": "disk-swap", "serial": "swap", '
        '"write-cache": "on", "bus": "slot-9", "addr": "0x0"} '
        '-netdev {"type": "tap", "id": "tap-lan", "fd": "7"} '
        '-device {"driver": "virtio-net-pci", "id": "nic-lan", "netdev": "tap-lan", "mac": "02:00:00:00:00:01", '
        '"romfile": "", "host_mtu": 1400, "bus": "slot-0", "addr": "0x0"}'
    )


def test_direct_boot_takes_the_prepared_files_and_no_bootindex() -> None:
    spec = replace(WEB, kernel="/srv/k", initrd="/srv/i", append='root=/dev/vda "a, b"')
    argv = qemu_argv(spec, "qemu", replace(FILES, kernel="/r/boot-1"), kvm=False)
    assert options(argv, "-kernel") == ["/r/boot-1"]
    assert options(argv, "-initrd") == ["/srv/i"]
    assert options(argv, "-append") == ['root=/dev/vda "a, b"']
    assert "bootindex" not in devices(argv)["disk-root"]


@pytest.mark.parametrize(
    ("accel", "kvm", "cpu", "expected"),
    [
        ("auto", True, None, ["-accel", "kvm", "-cpu", "host", "-smp"]),
        ("auto", False, None, ["-accel", "tcg", "-smp", "2"]),
        ("tcg", True, None, ["-accel", "tcg", "-smp", "2"]),
        ("kvm", False, "max", ["-accel", "kvm", "-cpu", "max", "-smp"]),
    ],
)
def test_accel_and_cpu(accel: str, kvm: bool, cpu: str | None, expected: list[str]) -> None:
    argv = qemu_argv(replace(WEB, accel=accel, cpu=cpu), "qemu", FILES, kvm=kvm)
    begin = argv.index("-accel")
    assert list(argv[begin : begin + len(expected)])[:4] == expected[:4]


@pytest.mark.parametrize(
    ("cache", "write_cache", "direct", "no_flush"),
    [
        ("writeback", "on", False, False),
        ("none", "on", True, False),
        ("writethrough", "off", False, False),
        ("directsync", "off", True, False),
        ("unsafe", "on", False, True),
    ],
)
def test_cache_modes(cache: str, write_cache: str, direct: bool, no_flush: bool) -> None:
    disk = replace(ROOT, cache=cache)
    assert disk_device("q35", disk)["write-cache"] == write_cache
    assert disk_blockdev(disk, DiskSet(0, ()))["cache"] == {"direct": direct, "no-flush": no_flush}


@pytest.mark.parametrize(
    ("slot", "ports"), [(0, 8), (5, 8), (6, 16), (13, 16), (14, 24), (21, 24), (22, 32), (183, 184)]
)
def test_two_ports_are_spare_and_devices_are_filled(slot: int, ports: int) -> None:
    assert number_of_root_ports(replace(WEB, disks=(), nics=(replace(LAN, slot=slot),))) == ports


def test_root_ports_by_slot() -> None:
    assert number_of_root_ports(replace(WEB, disks=(), nics=())) == 8
    port = {"driver": "pcie-root-port", "id": "slot-9", "bus": "pcie.0", "chassis": 10, "port": 9, "addr": "0x9.1"}
    assert root_port(9) == {**port, "multifunction": False}
    assert root_port(8)["multifunction"] is True


def test_a_device_keeps_its_place_when_others_come_and_go() -> None:
    alone = devices(qemu_argv(replace(WEB, nics=(), disks=(SWAP,)), "qemu", FILES, kvm=False))
    together = devices(qemu_argv(WEB, "qemu", FILES, kvm=False))
    assert alone["disk-swap"]["bus"] == together["disk-swap"]["bus"] == "slot-9"
    assert alone["slot-9"] == together["slot-9"]


@pytest.mark.parametrize(
    ("machine", "place"),
    [
        ("pc", {"bus": "pci.0", "addr": "0x8"}),
        ("pc-i440fx-7.2", {"bus": "pci.0", "addr": "0x8"}),
        ("microvm", {"bus": "pcie.0", "addr": "0x8"}),
        ("pc-q35-7.2", {"bus": "slot-0", "addr": "0x0"}),
    ],
)
def test_places_on_machines(machine: str, place: dict[str, str]) -> None:
    device = nic_device(machine, LAN)
    assert {key: device[key] for key in ("bus", "addr")} == place
    assert (number_of_root_ports(replace(WEB, machine=machine)) > 0) == ("q35" in machine)


def test_only_virtio_takes_an_mtu() -> None:
    assert "host_mtu" not in nic_device("q35", replace(LAN, model="e1000e"))


def test_hot_plugging_uses_the_same_devices_with_a_named_descriptor() -> None:
    assert nic_netdev(LAN, ("tap-lan-2",)) == {"type": "tap", "id": "tap-lan", "fd": "tap-lan-2"}


def test_what_the_operator_writes_cannot_become_an_option() -> None:
    nasty = 'x,server=off,path=/etc/passwd\n"'
    argv = qemu_argv(WEB, "qemu", replace(FILES, directory=f"/run/{nasty}"), kvm=False)
    doubled = nasty.replace(",", ",,")
    assert options(argv, "-chardev")[0] == f"socket,id=qmp,path=/run/{doubled}/qmp.sock,server=on,wait=off"
    assert options(argv, "-pidfile") == [f"/run/{nasty}/qemu.pid"]


def test_rng_and_watchdog_come_and_go_and_move_nothing() -> None:
    plain = devices(qemu_argv(WEB, "qemu", FILES, kvm=False))
    without = qemu_argv(replace(WEB, rng=False), "qemu", FILES, kvm=False)
    assert "-object" not in without
    assert devices(without) == {name: device for name, device in plain.items() if name != "rng"}
    watched = devices(qemu_argv(replace(WEB, watchdog="reset"), "qemu", FILES, kvm=False))
    assert watched.pop("watchdog") == {"driver": "i6300esb", "id": "watchdog", "bus": "pcie.0", "addr": "0x5"}
    assert watched == plain


@pytest.mark.parametrize(
    ("watchdog", "action"),
    [("reset", "reset"), ("poweroff", "pause"), ("pause", "pause"), ("inject-nmi", "inject-nmi"), ("none", "none")],
)
def test_what_qemu_does_when_the_watchdog_fires(watchdog: str, action: str) -> None:
    argv = qemu_argv(replace(WEB, watchdog=watchdog), "qemu", FILES, kvm=False)
    assert options(argv, "-action") == [f"reboot=reset,shutdown=pause,panic=pause,watchdog={action}"]


def test_golden_uefi() -> None:
    files = replace(FILES, firmware=FirmwareSets(DiskSet(1001, (20,)), DiskSet(1002, (21, 22))))
    spec = replace(WEB, firmware="uefi", secure_boot=True, disks=(), nics=())
    argv = qemu_argv(spec, "qemu", files, kvm=False)
    assert options(argv, "-machine") == ["q35,smm=on,pflash0=firmware-code,pflash1=firmware-variables"]
    assert options(argv, "-global") == ["driver=cfi.pflash01,property=secure,value=on"]
    begin = argv.index("-add-fd")
    assert " ".join(argv[begin : begin + 10]) == (
        '-add-fd set=1001,fd=20 -blockdev {"driver": "raw", "node-name": "firmware-code", "read-only": true, "file": '
        '{"driver": "file", "node-name": "firmware-code-file", "filename": "/dev/fdset/1001", "read-only": true}} '
        "-add-fd set=1002,fd=21 -add-fd set=1002,fd=22 "
        '-blockdev {"driver": "raw", "node-name": "firmware-variables", "read-only": false, "file": '
        '{"driver": "file", "node-name": "firmware-variables-file", "filename": "/dev/fdset/1002", "read-only": false}}'
    )
    assert set(files.fds) == {7, 8, 9, 10, 20, 21, 22}
    plain = qemu_argv(replace(spec, secure_boot=False), "qemu", files, kvm=False)
    assert options(plain, "-machine") == ["q35,pflash0=firmware-code,pflash1=firmware-variables"]
    assert "-global" not in plain


def test_golden_serial_ports() -> None:
    serials = (
        SerialSpec("ctl"),
        SerialSpec("log", to="file"),
        SerialSpec("modem", port="ttyS2"),
        SerialSpec("kernel", port="ttyS1", to="file"),
    )
    files = replace(FILES, log_sets={"log": (1101, 30), "kernel": (1103, 31)})
    argv = qemu_argv(replace(WEB, serials=serials), "qemu", files, kvm=False)
    plain = qemu_argv(WEB, "qemu", FILES, kvm=False)
    assert argv[: len(plain)] == plain
    assert " ".join(argv[len(plain) :]) == (
        '-device {"driver": "virtio-serial-pci", "id": "serial", "bus": "pcie.0", "addr": "0x6"} '
        "-chardev socket,id=serial-ctl,path=/run/vmhost/vms/web/serial-ctl.sock,server=on,wait=off "
        '-device {"driver": "virtserialport", "id": "serial-ctl", "bus": "serial.0", "chardev": "serial-ctl", '
        '"name": "ctl"} '
        "-add-fd set=1101,fd=30 -chardev file,id=serial-log,path=/dev/fdset/1101,append=on "
        '-device {"driver": "virtserialport", "id": "serial-log", "bus": "serial.0", "chardev": "serial-log", '
        '"name": "log"} '
        "-chardev socket,id=serial-modem,path=/run/vmhost/vms/web/serial-modem.sock,server=on,wait=off "
        '-device {"driver": "isa-serial", "id": "serial-modem", "chardev": "serial-modem", "index": 2} '
        "-add-fd set=1103,fd=31 -chardev file,id=serial-kernel,path=/dev/fdset/1103,append=on "
        '-device {"driver": "isa-serial", "id": "serial-kernel", "chardev": "serial-kernel", "index": 1}'
    )
    assert {30, 31} <= set(files.fds)


def test_golden_queues_and_vhost() -> None:
    nics = (replace(LAN, queues=2), replace(LAN, id="wan", slot=2, queues=4, vhost="true", direct="eth1", bridge=""))
    files = LaunchFiles("/r/web", {"lan": (7, 8), "wan": (9, 10, 11, 12)}, vhost_fds={"wan": (20, 21, 22, 23)})
    argv = qemu_argv(replace(WEB, nics=nics, disks=()), "qemu", files, kvm=False)
    assert " ".join(argv[argv.index("-netdev") :]) == (
        '-netdev {"type": "tap", "id": "tap-lan", "fds": "7:8"} '
        '-device {"driver": "virtio-net-pci", "id": "nic-lan", "netdev": "tap-lan", "mac": "02:00:00:00:00:01", '
        '"romfile": "", "host_mtu": 1400, "mq": true, "vectors": 6, "bus": "slot-0", "addr": "0x0"} '
        '-netdev {"type": "tap", "id": "tap-wan", "fds": "9:10:11:12", "vhost": true, "vhostfds": "20:21:22:23"} '
        '-device {"driver": "virtio-net-pci", "id": "nic-wan", "netdev": "tap-wan", "mac": "02:00:00:00:00:01", '
        '"romfile": "", "host_mtu": 1400, "mq": true, "vectors": 10, "bus": "slot-2", "addr": "0x0"}'
    )
    assert set(files.fds) == {7, 8, 9, 10, 11, 12, 20, 21, 22, 23}


def test_one_queue_with_vhost_is_named_in_the_singular() -> None:
    vhost = {"type": "tap", "id": "tap-lan", "fd": "7", "vhost": True, "vhostfd": "9"}
    assert nic_netdev(LAN, ("7",), ("9",)) == vhost


@pytest.mark.parametrize(
    ("vhost", "accel", "kvm", "model", "wanted"),
    [
        ("false", "kvm", True, "virtio-net-pci", False),
        ("true", "tcg", False, "virtio-net-pci", True),
        ("auto", "tcg", True, "virtio-net-pci", False),
        ("auto", "auto", True, "virtio-net-pci", True),
        ("auto", "auto", False, "virtio-net-pci", False),
        ("auto", "kvm", False, "virtio-net-pci", True),
        ("auto", "kvm", True, "e1000", False),
    ],
)
def test_who_is_to_have_vhost(vhost: str, accel: str, kvm: bool, model: str, wanted: bool) -> None:
    assert wants_vhost(replace(WEB, accel=accel), replace(LAN, vhost=vhost, model=model), kvm=kvm) is wanted
