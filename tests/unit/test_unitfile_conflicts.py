"""What two unit files both claim: whoever had it keeps it, and where nobody had it nobody gets it."""

from __future__ import annotations

import pytest

from agent.core.marks import derived_mac, derived_uuid
from tests.unit.unit_directory import BRIDGE, SEED, Directory, said, states, vm

OTHER_DISPLAY = "take another number, or vnc = true for a socket"
CONFLICTS = {
    "mac": (
        vm("a", nic='mac = "de:ad:be:ef:00:01"'),
        vm("b", nic='mac = "DE:AD:BE:EF:00:01"'),
        "x:5:1: error: MAC address de:ad:be:ef:00:01 is also that of [vm.b.nic.lan] in y",
        "y:5:1: error: MAC address de:ad:be:ef:00:01 is also that of [vm.a.nic.lan] in x",
    ),
    "mac of a bridge": (
        vm("a", nic='mac = "de:ad:be:ef:00:01"'),
        '[bridge.br1]\nmac = "de:ad:be:ef:00:01"\n',
        "x:5:1: error: MAC address de:ad:be:ef:00:01 is also that of [bridge.br1] in y",
        "y:2:1: error: MAC address de:ad:be:ef:00:01 is also that of [vm.a.nic.lan] in x",
    ),
    "default mac": (
        vm("a"),
        vm("b", nic=f'mac = "{derived_mac("nic", derived_uuid(SEED, "a"), "lan")}"'),
        (
            f"x:3:11: error: MAC address {derived_mac('nic', derived_uuid(SEED, 'a'), 'lan')} is also that of "
            "[vm.b.nic.lan] in y (it is the default; set mac to another one)"
        ),
        (
            f"y:5:1: error: MAC address {derived_mac('nic', derived_uuid(SEED, 'a'), 'lan')} is also that of "
            "[vm.a.nic.lan] in x"
        ),
    ),
    "display": (
        vm("a", 'vnc = "127.0.0.1:1"\n'),
        vm("b", 'vnc = "127.0.0.1:01"\n'),
        f"x:2:1: error: display 127.0.0.1:1 is also that of [vm.b] in y ({OTHER_DISPLAY})",
        f"y:2:1: error: display 127.0.0.1:1 is also that of [vm.a] in x ({OTHER_DISPLAY})",
    ),
    "disk": (
        vm("a") + '[vm.a.disk.d]\npath = "/srv//x/../d.raw"\n',
        vm("b") + '[vm.b.disk.d]\npath = "/srv/d.raw"\nread-only = true\n',
        'x:7:1: error: disk "/srv/d.raw" is also [vm.b.disk.d] in y (a disk that is written to belongs to one guest)',
        'y:7:1: error: disk "/srv/d.raw" is also [vm.a.disk.d] in x (a disk that is written to belongs to one guest)',
    ),
    "uuid": (
        vm("a", 'uuid = "6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11"\n', nic='mac = "de:ad:be:ef:00:01"'),
        vm("b", 'uuid = "6B6C4B0E-1d2f-4c58-9d1b-2f6c5d0a7e11"\n', nic='mac = "de:ad:be:ef:00:02"'),
        "x:2:1: error: uuid 6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11 is also that of [vm.b] in y",
        "y:2:1: error: uuid 6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11 is also that of [vm.a] in x",
    ),
    "port": (
        '[bridge.br1]\nports = ["eth1"]\n',
        '[bridge.br2]\nports = ["eth0", "eth1"]\n',
        'x:2:10: error: port "eth1" is also a port of [bridge.br2] in y',
        'y:2:18: error: port "eth1" is also a port of [bridge.br1] in x',
    ),
    "tap": (
        vm("a", nic='tap = "b-lan"'),
        vm("b"),
        'x:5:1: error: tap "b-lan" is also the tap of [vm.b.nic.lan] in y',
        'y:3:11: error: tap "b-lan" is also the tap of [vm.a.nic.lan] in x (it is the default; set tap to another one)',
    ),
    "tap and bridge": (
        vm("a", nic='tap = "br1"'),
        "[bridge.br1]\n",
        'x:5:1: error: tap "br1" is also the name of [bridge.br1] in y',
        'y:1:9: error: bridge "br1" is also the tap of [vm.a.nic.lan] in x',
    ),
    "tap and port": (
        vm("a", nic='tap = "eth1"'),
        '[bridge.br1]\nports = ["eth1"]\n',
        'x:5:1: error: tap "eth1" is also a port of [bridge.br1] in y',
        'y:2:10: error: port "eth1" is also the tap of [vm.a.nic.lan] in x',
    ),
    "name": (
        vm("a", nic='mac = "de:ad:be:ef:00:01"'),
        vm("a", nic='mac = "de:ad:be:ef:00:01"'),
        "x:1:5: error: [vm.a] is also defined in y (neither is used until one is renamed or removed)",
        "y:1:5: error: [vm.a] is also defined in x (neither is used until one is renamed or removed)",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_with_no_history_neither_has_it(case: str) -> None:
    x, y, x_says, y_says = CONFLICTS[case]
    result = Directory().save(bridge=BRIDGE, x=x, y=y)
    assert said(result) == [x_says, y_says]
    assert states(result) == {"bridge": "valid", "x": "invalid", "y": "invalid"}
    assert result.desired.unresolved_files == {"x", "y"}
    assert (set(result.desired.bridges), set(result.desired.vms)) == ({"br0"}, set())


@pytest.mark.parametrize("first", ["x", "y"])
@pytest.mark.parametrize("case", CONFLICTS)
def test_whoever_had_it_keeps_it(case: str, first: str) -> None:
    files = dict(zip("xy", CONFLICTS[case][:2], strict=True))
    late = "y" if first == "x" else "x"
    directory = Directory()
    before = directory.save(bridge=BRIDGE, **{first: files[first]})
    result = directory.save(**{late: files[late]})
    assert states(result) == {"bridge": "valid", first: "valid", late: "invalid"}
    assert len(said(result)) == 1
    assert result.desired.vms == before.desired.vms
    assert states(directory.save(**{first: None})) == {"bridge": "valid", late: "valid"}


def test_an_edit_that_takes_what_another_has_is_held() -> None:
    directory = Directory()
    directory.save(bridge=BRIDGE, x=vm("a", nic='tap = "t1"'), y=vm("b", nic='tap = "t2"'))
    result = directory.save(y=vm("b", "cpus = 4", nic='tap = "t1"'))
    assert states(result) == {"bridge": "valid", "x": "valid", "y": "held"}
    assert said(result) == ['y:5:1: error: tap "t1" is also the tap of [vm.a.nic.lan] in x']
    assert (result.desired.vms["b"].cpus, result.desired.vms["b"].nics[0].tap) == (1, "t2")


def test_what_a_held_file_has_is_not_free() -> None:
    directory = Directory()
    directory.save(bridge=BRIDGE, x=vm("a", nic='tap = "t1"'), y=vm("b", nic='tap = "t2"'))
    result = directory.save(x=vm("a", "cpus = 0", nic='tap = "t3"'), y=vm("b", nic='tap = "t1"'))
    assert states(result) == {"bridge": "valid", "x": "held", "y": "held"}
    assert said(result) == [
        "x:2:1: error: cpus must be a whole number, 1 to 288, not 0",
        'y:5:1: error: tap "t1" is also the tap of [vm.a.nic.lan] in x',
    ]
    swapped = directory.save(x=vm("a", nic='tap = "t2"'))
    assert states(swapped) == {"bridge": "valid", "x": "valid", "y": "valid"}


def test_a_tap_that_moves_within_a_held_file_is_no_conflict() -> None:
    directory = Directory()
    directory.save(bridge=BRIDGE, x=vm("a", nic='tap = "t1"') + vm("b", nic='tap = "t2"'))
    result = directory.save(x=vm("a", "cpus = 0", nic='tap = "t2"') + vm("b", nic='tap = "t1"'))
    assert said(result) == ["x:2:1: error: cpus must be a whole number, 1 to 288, not 0"]


def test_copies_of_a_guest_conflict_by_name_only() -> None:
    mac = 'mac = "de:ad:be:ef:00:01"'
    result = Directory().save(bridge=BRIDGE, x=vm("a", nic=mac), y=vm("a", nic=mac), z=vm("b", nic=mac))
    assert [error for error in said(result) if "MAC" in error] == [
        "x:5:1: error: MAC address de:ad:be:ef:00:01 is also that of [vm.b.nic.lan] in z",
        "y:5:1: error: MAC address de:ad:be:ef:00:01 is also that of [vm.b.nic.lan] in z",
        "z:5:1: error: MAC address de:ad:be:ef:00:01 is also that of [vm.a.nic.lan] in x",
    ]


def test_a_file_that_lost_its_last_good_version_keeps_its_names() -> None:
    directory = Directory()
    directory.save(web="[vm.web]\n")
    directory.good = {}
    assert states(directory.save(web="[vm.web]\ncpus = = 0\n")) == {"web": "invalid"}
    late = directory.save(new="[vm.web]\n")
    assert states(late) == {"new": "invalid", "web": "invalid"}
    assert said(late)[0] == "new:1:5: error: [vm.web] is already defined in web (rename or remove one of them)"


def test_two_in_one_file_are_one_mistake() -> None:
    both = vm("a", nic='tap = "t"') + vm("b", nic='tap = "t"')
    result = Directory().save(bridge=BRIDGE, x=both)
    assert said(result) == ['x:10:1: error: tap "t" is also the tap of [vm.a.nic.lan]']


def test_read_only_disks_are_shared() -> None:
    disk = '[vm.{0}.disk.d]\npath = "/iso.raw"\nread-only = true\n'
    result = Directory().save(bridge=BRIDGE, x=vm("a") + disk.format("a"), y=vm("b") + disk.format("b"))
    assert said(result) == []
    late = Directory(good=result.good, last=result, files={"bridge": BRIDGE, "x": vm("a") + disk.format("a")})
    late.files["y"] = vm("b") + disk.format("b")
    spoilt = late.save(y=vm("b") + disk.format("b").replace("true", "false"))
    assert states(spoilt) == {"bridge": "valid", "x": "valid", "y": "held"}
