"""All unit files together: which version of each runs, who keeps what two of them claim, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

from agent.core.allocation import UID_BASE
from agent.core.desired import Limits
from agent.core.marks import derived_mac, derived_uuid
from tests.unit.unit_directory import BRIDGE, SEED, Directory, said, states, vm


def test_specs_are_complete() -> None:
    result = Directory().save(
        a='[bridge.br0]\nmtu = 9000\nports = ["eth1"]\naddresses = ["10.0.0.1/24"]\n',
        b=vm("web", 'memory = "1G"\nkernel = "/k"\nrestart = "never"\ncpu-quota = "150%"\ntasks = 90')
        + '[vm.web.disk.root]\npath = "/srv/web.img"\nsize = "1G"\n[vm.web.nic.old]\nbridge = "br0"\nmtu = 1500\n',
    )
    assert said(result) == []
    bridge, web = result.desired.bridges["br0"], result.desired.vms["web"]
    assert (bridge.mac, bridge.mtu, bridge.port_mtu) == (derived_mac("bridge", "machine", "br0"), 9000, 9000)
    assert (bridge.ports, bridge.addresses, bridge.file) == (("eth1",), ("10.0.0.1/24",), "a")
    assert (web.uuid, web.uid, web.file) == (derived_uuid(SEED, "web"), UID_BASE, "b")
    assert (web.memory_mib, web.kernel, web.restart, web.stop_timeout_s) == (1024, "/k", "never", 60.0)
    assert web.limits == Limits(cpu_quota_us=1_500_000, tasks=90)
    (disk,) = web.disks
    assert (disk.format, disk.size_bytes, disk.slot, disk.discard) == ("raw", 1 << 30, 0, True)
    lan, old = web.nics
    assert (lan.tap, lan.mac, lan.slot, lan.mtu) == ("web-lan", derived_mac("nic", web.uuid, "lan"), 1, 9000)
    assert (old.tap, old.slot, old.mtu, old.model) == ("web-old", 2, 1500, "virtio-net-pci")
    assert result.incumbents == {"bridge/br0": "a", "vm/web": "b"}


def test_bridge_without_mtu_leaves_its_ports_theirs() -> None:
    assert Directory().save(a=BRIDGE).desired.bridges["br0"].port_mtu is None


def test_a_moved_file_takes_its_names_along() -> None:
    directory = Directory()
    before = directory.save(bridge=BRIDGE, old=vm("a"))
    assert states(directory.save(new=vm("a"))) == {"bridge": "valid", "new": "invalid", "old": "valid"}
    after = directory.save(old=None)
    assert states(after) == {"bridge": "valid", "new": "valid"}
    assert after.desired.vms["a"] == replace(before.desired.vms["a"], file="new")


def test_a_bridge_that_is_named_by_nobody() -> None:
    files = {"lan": "[bridge.br-lan]\n", "web": vm("web").replace("br0", "br-lna"), "db": vm("db").replace("br0", "zz")}
    result = Directory().save(**files)
    assert said(result) == [
        'db:4:1: error: bridge "zz" is not defined in any file',
        'web:4:1: error: bridge "br-lna" is not defined in any file (did you mean "br-lan"?)',
    ]
    assert states(result) == {"db": "invalid", "lan": "valid", "web": "invalid"}


def test_reference_errors_are_told_beside_others() -> None:
    result = Directory().save(web=vm("web", "cpus = 0").replace("br0", "br9"))
    assert said(result) == [
        "web:2:1: error: cpus must be a whole number, 1 to 288, not 0",
        'web:4:1: error: bridge "br9" is not defined in any file',
    ]


def test_a_bridge_with_a_mistake_is_no_missing_bridge() -> None:
    assert said(Directory().save(one="[bridge.br0]\nmtu = 1\n" + vm("web"))) == [
        "one:2:1: error: mtu must be a whole number, 68 to 65535, not 1"
    ]
    assert said(Directory().save(lan="[bridge.br0]\nmtu = 1\n", web=vm("web"))) == [
        "lan:2:1: error: mtu must be a whole number, 68 to 65535, not 1",
        'web:4:1: error: bridge "br0" is defined in lan, which has errors',
    ]


def test_a_bridge_that_vanishes_holds_the_files_of_its_guests() -> None:
    directory = Directory()
    before = directory.save(lan="[bridge.br0]\nmtu = 1400\n", web=vm("web"))
    for _ in range(2):
        result = directory.save(**({"lan": None} if "lan" in directory.files else {}))
        assert states(result) == {"web": "held"}
        assert said(result) == [
            'web:4:1: error: bridge "br0" is no longer defined in any file (the bridge stays as it was)'
        ]
        assert result.desired.vms == before.desired.vms
        assert result.desired.retained == before.desired.bridges
        assert result.desired.bridges == {}
    back = directory.save(lan=BRIDGE)
    assert states(back) == {"lan": "valid", "web": "valid"}
    assert back.desired.retained == {}


def test_after_names_nobody() -> None:
    result = Directory().save(x='[vm.web]\nafter = ["vm:dbb"]\n[vm.db]\n')
    assert said(result) == ['x:2:10: error: guest "dbb" is not defined in any file (did you mean "db"?)']


def test_a_guest_that_others_start_after_vanishes() -> None:
    directory = Directory()
    directory.save(x='[vm.web]\nafter = ["vm:db", "vm:mail"]\n', y="[vm.db]\n", z="[vm.mail]\n")
    result = directory.save(y=None)
    assert states(result) == {"x": "held", "z": "valid"}
    assert said(result) == [
        'x:2:10: error: guest "db" is no longer defined in any file (the guest no longer waits for it)'
    ]
    assert result.desired.vms["web"].after == ("vm:mail",)


def test_loops_are_told_where_they_are_closed() -> None:
    loop = Directory().save(x='[vm.a]\nafter = ["vm:b"]\n', y='[vm.b]\nafter = ["vm:c"]\n[vm.c]\nafter = ["vm:a"]\n')
    assert said(loop) == [
        "x:2:10: error: after makes a loop: vm:a -> vm:b -> vm:c -> vm:a",
        "y:2:10: error: after makes a loop: vm:b -> vm:c -> vm:a -> vm:b",
    ]
    assert said(Directory().save(x='[vm.a]\nafter = ["vm:a"]\n')) == ["x:2:10: error: after makes a loop: vm:a -> vm:a"]
    directory = Directory()
    directory.save(x='[vm.a]\nafter = ["vm:b"]\n', y="[vm.b]\n")
    late = directory.save(y='[vm.b]\nafter = ["vm:a"]\n')
    assert states(late) == {"x": "valid", "y": "held"}
    assert late.desired.vms["a"].after == ("vm:b",)
    assert late.desired.vms["b"].after == ()


def test_a_file_is_not_punished_for_what_anothers_fall_back_mended() -> None:
    directory = Directory()
    directory.save(lan="[bridge.br1]\n", web=vm("web").replace("br0", "br1"))
    files = {"lan": vm("x").replace("br0", "nowhere") + "[bridge.br2]\n", "db": vm("db").replace("br0", "br1")}
    result = directory.save(**files)
    assert states(result) == {"db": "valid", "lan": "held", "web": "valid"}
    assert set(result.desired.vms) == {"db", "web"}


def test_broken_toml_is_held_over_a_restart() -> None:
    directory = Directory()
    before = directory.save(bridge=BRIDGE, web=vm("web"))
    result = directory.save(web="[vm.web]\ncpus = = 2\n")
    assert states(result) == {"bridge": "valid", "web": "held"}
    assert result.desired == before.desired
    assert result.good == before.good
    first_time = Directory(files={"web": "[vm.web\n"}).resolve()
    assert states(first_time) == {"web": "invalid"}
    assert first_time.desired.unresolved_files == {"web"}


def test_who_is_named_by_a_text_that_cannot_run_is_told() -> None:
    directory = Directory()
    directory.save(bridge=BRIDGE, web=vm("web"))
    assert directory.resolve().desired.unresolved_guests == {}
    uuid = "0f000000-0000-4000-8000-000000000001"
    moved = directory.save(bridge=BRIDGE + "[vm.web]\ncpu = 2\n", new=f'[vm.db]\nuuid = "{uuid}"\ncpu = 2\n', web=None)
    assert states(moved) == {"bridge": "held", "new": "invalid"}
    named = moved.desired.unresolved_guests
    assert (named["web"], named["db"], named[uuid]) == ("bridge", "new", "new")
    assert directory.save(bridge=BRIDGE, new=None).desired.unresolved_guests == {}


def test_a_uuid_moves_with_a_renamed_guest() -> None:
    directory = Directory()
    old = directory.save(bridge=BRIDGE, web=vm("web")).desired.vms["web"]
    renamed = directory.save(web=vm("www", f'uuid = "{old.uuid}"')).desired.vms["www"]
    assert (renamed.uuid, renamed.uid, renamed.nics[0].mac) == (old.uuid, old.uid, old.nics[0].mac)
    both = directory.save(other=vm("web"))
    assert said(both) == []
    assert both.desired.vms["web"].uuid != old.uuid
    without = directory.save(web=vm("www"))
    assert without.desired.vms["www"].uuid == old.uuid


def test_a_guest_that_comes_back_is_the_same() -> None:
    directory = Directory()
    old = directory.save(bridge=BRIDGE, a=vm("a"), b=vm("b"))
    directory.save(a=None)
    directory.save(c=vm("c"))
    again = directory.save(a=vm("a"))
    assert again.desired.vms["a"] == old.desired.vms["a"]
    assert len({spec.uid for spec in again.desired.vms.values()}) == 3


def test_a_device_keeps_its_slot_when_another_one_leaves() -> None:
    directory = Directory()
    nics = {name: f'[vm.a.nic.{name}]\nbridge = "br0"\n' for name in ("n0", "n1", "n2")}
    directory.save(bridge=BRIDGE, a="".join(nics.values()))
    fewer = directory.save(a=nics["n2"])
    assert [nic.slot for nic in fewer.desired.vms["a"].nics] == [2]
    for turn in range(30):
        last = directory.save(a=nics["n2"] + f'[vm.a.nic.t{turn}]\nbridge = "br0"\n')
        assert last.desired.vms["a"].nics[0].slot == 2
        assert last.desired.vms["a"].nics[1].slot < 24


def test_an_invalid_uuid_does_not_make_its_macs_collide() -> None:
    result = Directory().save(bridge=BRIDGE, a=vm("a", "uuid = 1"), b=vm("b", "uuid = 2"))
    assert [error.split(" error: ")[1][:18] for error in said(result)] == ["uuid must be a uui"] * 2


def test_nothing_is_assigned_twice() -> None:
    directory = Directory()
    first = directory.save(bridge=BRIDGE, a=vm("a"))
    second = directory.resolve()
    assert second.allocations is first.allocations
