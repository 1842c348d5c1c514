"""`vmhost show`: a guest or bridge as its unit has it, as it last was good, and as it runs."""

from __future__ import annotations

from dataclasses import replace

from agent.core.desired import BridgeSpec, Desired, DiskSpec, VmSpec
from agent.core.marks import bridge_mark
from agent.core.observed import AddressState, LinkState, Observed, VmState
from agent.core.tell.show import (
    Setting,
    UnitText,
    differences,
    known_as,
    settings_of_bridge,
    settings_of_vm,
    show_json,
)

WEB = VmSpec("web", "u", 1, "web.toml", disks=(DiskSpec("root", "/d/web.raw", "raw", 0),))
BRIDGE = BridgeSpec("br0", "02:00:00:00:00:01", addresses=("10.0.0.1/24",), ports=("eth1",))
LINK = LinkState(
    2, "br0", "bridge", True, 1400, BRIDGE.mac, alias=bridge_mark("br0"),
    addresses=(AddressState("10.0.0.1/24"), AddressState("10.9.9.9/24"), AddressState("10.8.8.8/24", own=True)),
)  # fmt: skip


def differing(settings: tuple[Setting, ...]) -> list[tuple[str, str, str | None]]:
    return [(one.key, one.unit, one.runs) for one in settings if one.differs]


def test_what_runs_beside_what_is_wanted() -> None:
    wanted = replace(WEB, memory_mib=1024, disks=(replace(WEB.disks[0], cache="none"),))
    seen = Observed(vms={"web": VmState(WEB, True, 1)})
    found = settings_of_vm("web", Desired({}, {"web": wanted}), seen)
    assert differing(found) == [("disk.root.cache", "none", "writeback"), ("memory", "1G", "512M")]
    assert differing(settings_of_vm("web", Desired({}, {"web": WEB}), seen)) == []


def test_of_what_does_not_run_nothing_differs() -> None:
    found = settings_of_vm("web", Desired({}, {"web": WEB}), Observed())
    assert {one.runs for one in found} == {None}
    ended = Observed(vms={"web": VmState(WEB, False, 1)})
    assert settings_of_vm("web", Desired({}, {"web": WEB}), ended) == found
    assert differing(found) == []


def test_what_no_unit_wants_has_no_unit_s_side() -> None:
    found = settings_of_vm("web", Desired(), Observed(vms={"web": VmState(WEB, True, 1)}))
    assert Setting("memory", "", "512M") in found


def test_a_bridge_without_what_others_added_to_it() -> None:
    links = {
        "br0": LINK,
        "eth1": LinkState(3, "eth1", master=2),
        "veth9": LinkState(4, "veth9", "veth", master=2),
    }
    found = settings_of_bridge("br0", Desired({"br0": BRIDGE}), Observed(links=links))
    assert differing(found) == [("addresses", "10.0.0.1/24", "10.0.0.1/24 10.8.8.8/24"), ("mtu", "1500", "1400")]
    foreign = {"br0": replace(LINK, alias="theirs")}
    assert {one.runs for one in settings_of_bridge("br0", Desired({"br0": BRIDGE}), Observed(links=foreign))} == {None}


def test_the_difference_since_the_last_good_version() -> None:
    unit = UnitText("w.toml", 1, "held", "[vm.web]\ncpu = 2\n", "[vm.web]\ncpus = 2\n", ("w.toml:2:1: error: x",))
    assert differences(unit) == ("--- last good", "+++ now", "@@ -1,2 +1,2 @@", " [vm.web]", "-cpus = 2", "+cpu = 2")
    assert differences(replace(unit, text=unit.last_good)) == ()
    assert differences(replace(unit, last_good=None)) == ()
    answer = show_json("vm", "web", [unit], Desired({}, {"web": WEB}), Observed())
    assert (answer["resource"], answer["runs"]) == ("vm/web", False)


def test_what_a_name_may_mean() -> None:
    desired = Desired({"both": BRIDGE}, {"both": WEB, "web": WEB})
    seen = Observed(vms={"old": VmState(WEB, True, 1)})
    assert known_as("both", desired, seen, ()) == (("vm", "both"), ("bridge", "both"))
    assert known_as("bridge/both", desired, seen, ()) == (("bridge", "both"),)
    assert known_as("old", desired, seen, ()) == (("vm", "old"),)
    assert known_as("broken", desired, seen, ["vm/broken"]) == (("vm", "broken"),)
    assert known_as("nobody", desired, seen, ()) == ()
