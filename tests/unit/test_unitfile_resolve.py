"""All unit files together: which version of each runs, who keeps what two of them claim, and what is said about it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.allocation import UID_BASE, Allocations
from agent.core.marks import derived_mac, derived_uuid
from agent.unitfile.parse import ParsedUnit, parse_unit
from agent.unitfile.resolve import Resolution, ResolveContext, UnitSource, resolve

SEED = uuid.UUID(int=7)
BRIDGE = "[bridge.br0]\n"


def vm(name: str, more: str = "", *, nic: str = "") -> str:
    """A guest, its further keys, and the keys of its NIC on br0."""
    return f'[vm.{name}]\n{more}\n[vm.{name}.nic.lan]\nbridge = "br0"\n{nic}\n'


@dataclass
class Directory:
    """Unit files that change, resolved as the agent does: each resolution remembers what the last one left behind."""

    files: dict[str, str] = field(default_factory=dict)
    good: Mapping[str, bytes] = field(default_factory=dict)
    last: Resolution | None = None

    def save(self, **files: str | None) -> Resolution:
        """Write files (None: remove) and resolve."""
        for name, text in files.items():
            if text is None:
                del self.files[name]
            else:
                self.files[name] = text
        return self.resolve()

    def resolve(self) -> Resolution:
        last = self.last
        context = ResolveContext(
            machine_id="machine",
            seed=SEED,
            allocations=last.allocations if last else Allocations(),
            incumbents=last.incumbents if last else {},
            retained={**last.desired.retained, **last.desired.bridges} if last else {},
        )
        sources = [
            UnitSource(parsed(name, text), parsed(name, self.good[name].decode()) if name in self.good else None)
            for name, text in self.files.items()
        ]
        self.last = resolve(sources, context)
        self.good = self.last.good
        return self.last


def parsed(name: str, text: str) -> ParsedUnit:
    return parse_unit(name, text.encode())


def said(resolution: Resolution) -> list[str]:
    return [str(error) for file in resolution.files for error in file.errors]


def states(resolution: Resolution) -> dict[str, str]:
    return {file.path: file.state for file in resolution.files}


def test_specs_are_complete() -> None:
    result = Directory().save(
        a='[bridge.br0]\nmtu = 9000\nports = ["eth1"]\naddresses = ["10.0.0.1/24"]\n',
        b=vm("web", 'memory = "1G"\nkernel = "/k"\nrestart = "never"')
        + '[vm.web.disk.root]\npath = "/srv/web.img"\nsize = "1G"\n[vm.web.nic.old]\nbridge = "br0"\nmtu = 1500\n',
    )
    assert said(result) == []
    bridge, web = result.desired.bridges["br0"], result.desired.vms["web"]
    assert (bridge.mac, bridge.mtu, bridge.port_mtu) == (derived_mac("bridge", "machine", "br0"), 9000, 9000)
    assert (bridge.ports, bridge.addresses, bridge.file) == (("eth1",), ("10.0.0.1/24",), "a")
    assert (web.uuid, web.uid, web.file) == (derived_uuid(SEED, "web"), UID_BASE, "b")
    assert (web.memory_mib, web.kernel, web.restart, web.stop_timeout_s) == (1024, "/k", "never", 60.0)
    (disk,) = web.disks
    assert (disk.format, disk.size_bytes, disk.slot, disk.discard) == ("raw", 1 << 30, 0, True)
    lan, old = web.nics
    assert (lan.tap, lan.mac, lan.slot, lan.mtu) == ("web-lan", derived_mac("nic", web.uuid, "lan"), 1, 9000)
    assert (old.tap, old.slot, old.mtu, old.model) == ("web-old", 2, 1500, "virtio-net-pci")
    assert result.incumbents == {"bridge/br0": "a", "vm/web": "b"}


def test_bridge_without_mtu_leaves_its_ports_theirs() -> None:
    assert Directory().save(a=BRIDGE).desired.bridges["br0"].port_mtu is None


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
    assert result.desired.vms["web"].after == ("mail",)


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
    assert late.desired.vms["a"].after == ("b",)
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


TEXTS = [
    BRIDGE,
    "[bridge.br0]\nmtu = 1\n",
    '[bridge.br1]\nports = ["eth1"]\n' + BRIDGE,
    vm("a"),
    vm("a", nic='tap = "t"'),
    vm("b", nic='tap = "t"'),
    vm("b", 'after = ["vm:a"]'),
    vm("a", 'after = ["vm:b"]'),
    vm("c", 'after = ["vm:b", "vm:zz"]'),
    vm("c", nic='tap = "br0"'),
    "[vm.a\n",
    "x = 1\n",
    "",
]
SAVES = st.dictionaries(st.sampled_from("pqrs"), st.none() | st.sampled_from(TEXTS), max_size=4)


def check_invariants(result: Resolution, files: Iterable[str]) -> None:
    desired = result.desired
    assert {file.path for file in result.files} == set(files)
    assert {file.path for file in result.files if file.state == "invalid"} == desired.unresolved_files
    assert all((file.state == "valid") == (not file.errors) for file in result.files)
    taps = [nic.tap for spec in desired.vms.values() for nic in spec.nics]
    links = [*taps, *desired.bridges, *(port for spec in desired.bridges.values() for port in spec.ports)]
    assert len(links) == len(set(links))
    for spec in desired.vms.values():
        assert set(spec.after) <= desired.vms.keys()
        assert all(nic.bridge in desired.bridges or nic.bridge in desired.retained for nic in spec.nics)
    assert not desired.bridges.keys() & desired.retained.keys()


@settings(max_examples=200, deadline=None)
@given(st.lists(SAVES, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_every_history_resolves_whatever_the_order(history: list[dict[str, str | None]], rng: random.Random) -> None:
    one, other = Directory(), Directory()
    for saves in history:
        known = {name: text for name, text in saves.items() if text is not None or name in one.files}
        gone = {name for name, text in known.items() if text is None}
        before = one.last
        result = one.save(**known)
        check_invariants(result, one.files)
        if before is not None:
            unchanged = {file.path for file in before.files if file.state == "valid"} - known.keys()
            still = {name for name, spec in before.desired.vms.items() if spec.file in unchanged - gone}
            assert still <= result.desired.vms.keys(), "an edit of another file ended a guest"
        shuffled = list({**other.files, **known}.items())
        rng.shuffle(shuffled)
        other.files = {name: text for name, text in shuffled if text is not None}
        assert other.resolve() == result
