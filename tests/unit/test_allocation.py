"""Places of devices: kept for what left, and yet never used up by names that come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.core.allocation import Allocations, ports_for, with_slots


def test_a_device_that_left_finds_its_place_again() -> None:
    first, kept = with_slots(Allocations(), "u", ("disk/root", "nic/lan"))
    assert first == {"disk/root": 0, "nic/lan": 1}
    without, kept = with_slots(kept, "u", ("disk/root", "nic/dmz"))
    assert without["nic/dmz"] == 2
    again, _ = with_slots(kept, "u", ("disk/root", "nic/lan", "nic/dmz"))
    assert (again["nic/lan"], again["nic/dmz"]) == (1, 2)


@given(st.lists(st.sets(st.integers(0, 40), max_size=5), max_size=30))
def test_names_that_come_and_go_stay_within_what_a_guest_has_from_its_start(edits: list[set[int]]) -> None:
    allocations, before = Allocations(), dict[str, int]()
    for names in edits:
        devices = ("disk/root", *(f"nic/n{name}" for name in sorted(names)))
        slots, allocations = with_slots(allocations, "u", devices)
        places = [slots[device] for device in devices]
        assert len(set(places)) == len(places)
        assert max(places) < 8, "one to six devices and two spare places are eight"
        assert all(slots[device] == before[device] for device in devices if device in before)
        before = {device: slots[device] for device in devices}


def test_ports_are_whole_pci_devices_and_end_where_the_chipset_begins() -> None:
    assert [ports_for(slots) for slots in ([], [0], [5], [6], [183])] == [8, 8, 8, 16, 184]
    assert ports_for([], spare=64) == 64
