"""What a running guest takes over of an edited unit, and what waits; that the table of effects lacks no key."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from agent.core.actions import LimitVm, kind_of
from agent.core.desired import BridgeSpec, Desired, DiskSpec, Limits, NicSpec, SerialSpec, VlanSpec, VmSpec
from agent.core.device_actions import TakeOver
from agent.core.edits.digest import pending_changes
from agent.core.edits.effects import EFFECTS, PLUGGING, Effect, is_live, key_of_field
from agent.core.edits.live import Edit, live_edit
from agent.core.limits import limit_values
from agent.core.observed import DiskState, Observed, VmState
from agent.core.planning import plan
from agent.core.qemu.argv import devices_at_launch
from agent.core.tell.describe import describe
from agent.unitfile import schema

NIC = NicSpec("lan", "br0", "02:00:00:00:00:02", "web-lan", 0)
DMZ = NicSpec("dmz", "br1", "02:00:00:00:00:03", "web-dmz", 2)
ROOT = DiskSpec("root", "/srv/root.raw", "raw", 1)
GROWN = replace(ROOT, size_bytes=5)
DATA = DiskSpec("data", "/srv/data.raw", "raw", 3)
WEB = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml", nics=(NIC,), disks=(ROOT,))
RUNS = VmState(WEB, True, 4711, run_state="running", devices=devices_at_launch(WEB))
TABLES: dict[str, type[schema.Table]] = {
    "bridge": schema.BridgeTable,
    "vm": schema.VmTable,
    "disk": schema.DiskTable,
    "nic": schema.NicTable,
    "serial": schema.SerialTable,
}


def test_every_key_of_the_schema_is_in_the_table_and_no_other() -> None:
    for name, table in TABLES.items():
        keys = {key for key in schema.keys_of(table) if key not in PLUGGING}
        assert set(EFFECTS[name]) == keys, name


def test_every_field_of_a_spec_comes_from_a_key_or_is_known_not_to() -> None:
    ours = {
        "vm": {"name", "file", "uid", "disks", "nics", "serials", "limits"},
        "disk": {"id", "slot"},
        "nic": {"id", "slot"},
        "serial": {"id"},
        "bridge": {"name", "file", "port_mtu", "vlans"},
        "vlan": {"name", "file", "on_bridge"},
    }
    specs = {
        "vm": VmSpec,
        "disk": DiskSpec,
        "nic": NicSpec,
        "serial": SerialSpec,
        "bridge": BridgeSpec,
        "vlan": VlanSpec,
    }
    for table, spec in specs.items():
        unknown = {field.name for field in fields(spec) if key_of_field(field.name) not in EFFECTS[table]}
        assert unknown == ours[table]
    limits = {key for key in limit_values(Limits()) if EFFECTS["vm"][key].effect is Effect.LIVE}
    assert limits == {key_of_field(field.name.removesuffix("_us")) for field in fields(Limits)}
    assert is_live("vm", "stop_timeout_s")
    assert not is_live("vm", "memory_mib")
    assert not is_live("vm", "uid")
    assert EFFECTS["vm"]["uuid"].effect is Effect.REPLACE


@pytest.mark.parametrize(
    ("wanted", "spec"),
    [
        (replace(WEB, description="x", memory_mib=1024), replace(WEB, description="x")),
        (replace(WEB, nics=(replace(NIC, bridge="br1", mac="m"),)), replace(WEB, nics=(replace(NIC, bridge="br1"),))),
        (replace(WEB, nics=(NIC, DMZ)), replace(WEB, nics=(NIC, DMZ))),
        (replace(WEB, nics=(DMZ, NIC)), replace(WEB, nics=(DMZ, NIC))),
        (replace(WEB, disks=(ROOT, DATA)), replace(WEB, disks=(ROOT, DATA))),
        (replace(WEB, disks=(replace(GROWN, cache="none"),)), replace(WEB, disks=(GROWN,))),
        (replace(WEB, uuid="another", description="x"), replace(WEB, description="x")),
    ],
)
def test_what_is_live_is_taken_over(wanted: VmSpec, spec: VmSpec) -> None:
    assert live_edit(RUNS, wanted) == Edit(spec)


@pytest.mark.parametrize(
    "wanted",
    [
        WEB,
        replace(WEB, memory_mib=1024),
        replace(WEB, nics=(NIC, replace(DMZ, slot=77))),
        replace(WEB, nics=(NIC, replace(DMZ, slot=1))),
        replace(WEB, disks=(ROOT, replace(DATA, media="cdrom", bus="sata"))),
        replace(WEB, serials=(SerialSpec("log"),)),
        replace(WEB, disks=(replace(GROWN, path="/srv/other.raw"),)),
        replace(WEB, disks=(replace(ROOT, id="system", slot=3),)),
        replace(WEB, nics=(replace(NIC, id="wan", slot=2),)),
    ],
)
def test_what_is_not_waits(wanted: VmSpec) -> None:
    assert live_edit(RUNS, wanted) is None


def test_what_leaves_is_kept_until_it_is_gone_and_stays_when_it_is_wanted_again() -> None:
    edit = live_edit(RUNS, replace(WEB, nics=(), disks=()))
    assert edit == Edit(replace(WEB, nics=(), disks=()), (NIC,), (ROOT,))
    leaving = replace(RUNS, spec=edit.spec, leaving_nics=edit.leaving_nics, leaving_disks=edit.leaving_disks)
    assert live_edit(leaving, edit.spec) is None
    assert live_edit(leaving, WEB) == Edit(WEB)
    other = replace(WEB, nics=(replace(NIC, mac="02:00:00:00:00:99"),))
    again = live_edit(leaving, other)
    assert again == Edit(WEB)
    assert [change.key for change in pending_changes(again.spec, other)] == ["nic.lan.mac"]
    in_its_place = replace(WEB, nics=(replace(DMZ, slot=0),), disks=())
    assert live_edit(leaving, in_its_place) is None, "its place is not free yet"


def test_what_is_leaving_and_wanted_under_another_id_is_plugged_once_it_is_gone() -> None:
    spec = replace(WEB, nics=(), disks=())
    leaving = replace(RUNS, spec=spec, leaving_nics=(NIC,), leaving_disks=(ROOT,))
    renamed = replace(WEB, nics=(replace(NIC, id="wan", slot=2),), disks=(replace(ROOT, id="system", slot=3),))
    assert live_edit(leaving, renamed) is None
    assert live_edit(replace(leaving, leaving_nics=(), leaving_disks=()), renamed) == Edit(renamed)


def test_a_guest_that_is_to_be_another_one_is_edited_as_the_one_that_it_is() -> None:
    wanted = replace(WEB, uuid="another", description="x", limits=Limits(cpu_weight=7))
    state = replace(RUNS, unit="vmhost-vm-web.service", limits=Limits())
    actions = plan(Desired(vms={"web": wanted}), Observed(vms={"web": state}), 0.0).actions
    assert {one.uuid for one in actions if isinstance(one, TakeOver | LimitVm)} == {"uuid-web"}
    assert {"take-over", "limit-vm"} <= {kind_of(one) for one in actions}


def test_a_microvm_and_a_guest_whose_places_are_not_known_plug_nothing() -> None:
    for state in (replace(RUNS, spec=replace(WEB, machine="microvm")), replace(RUNS, devices=None)):
        wanted = replace(state.spec, nics=(NIC, DMZ), disks=(ROOT, DATA))
        assert live_edit(state, wanted) is None
    microvm = replace(RUNS, spec=replace(WEB, machine="microvm"))
    assert live_edit(microvm, replace(microvm.spec, nics=())) is None


def test_a_disk_is_plugged_once_its_file_is_there_and_its_end_is_told() -> None:
    spec = replace(WEB, nics=(), disks=(ROOT, DATA))
    state = replace(RUNS, spec=spec, nics={})
    desired = Desired(vms={"web": spec})
    there, absent = DiskState(True, True, True), DiskState(False, True, False)

    def kinds(data: DiskState, seen: VmState = state) -> list[str]:
        disks = {ROOT.path: there, DATA.path: data}
        return [kind_of(action) for action in plan(desired, Observed(vms={"web": seen}, disks=disks), 0.0).actions]

    assert kinds(absent) == []
    assert kinds(there) == ["plug-disk"]
    sized = replace(spec, disks=(ROOT, replace(DATA, size_bytes=1 << 20)))
    desired = Desired(vms={"web": sized})
    assert kinds(absent, replace(state, spec=sized)) == ["create-disk"]
    desired = Desired(vms={"web": replace(spec, disks=(ROOT,))})
    leaving = replace(state, spec=replace(spec, disks=(ROOT,)), leaving_disks=(DATA,))
    leaving = replace(leaving, devices=(state.devices or frozenset()) | {"disk-data"})
    decided = plan(desired, Observed(vms={"web": leaving}), 0.0)
    assert [describe(action) for action in decided.actions] == [
        "have web let go of data, and unplug it; /srv/data.raw stays"
    ]
    assert [(c.resource, c.type, c.message) for c in decided.conditions] == [
        ("vm/web/disk/data", "Detaching", "web is asked to let go of data")
    ]
    paused = replace(leaving, run_state="paused")
    told = [c.message for c in plan(desired, Observed(vms={"web": paused}), 0.0).conditions if c.type == "Detaching"]
    assert told == ["web is asked to let go of data; it cannot while it is paused"]
