"""The values of `vlan`, `trunk`, `native` and `id`, as in `agent.unitfile.values`, and what goes together of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from agent.core.vlans import FIRST_ID, LAST_ID, joined
from agent.unitfile.machines import Mistake
from agent.unitfile.values import BadValueError, quoted, shown

_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", re.ASCII)
_TRUNK = 'must be VLANs such as [10, 20, "100-120"], or "all"'
ALL = "all"


def parse_id(value: object) -> int:
    """The number of a VLAN (IEEE 802.1Q: 0 and 4095 are none)."""
    if isinstance(value, bool) or not isinstance(value, int) or not FIRST_ID <= value <= LAST_ID:
        number = value if isinstance(value, str) and re.fullmatch("[0-9]{1,4}", value, re.ASCII) else ""
        hint = f"write {number} without quotes" if number else ""
        raise BadValueError(f"must be a VLAN, {FIRST_ID} to {LAST_ID}, not {shown(value)}", hint)
    return value


def parse_id_key(value: object) -> str:
    """The name of a table `[bridge.NAME.vlan.ID]`: the number, as it is written without zeros before it."""
    if not isinstance(value, str) or not re.fullmatch("[1-9][0-9]{0,3}", value, re.ASCII) or int(value) > LAST_ID:
        stripped = value.lstrip("0") if isinstance(value, str) else ""
        hint = f"did you mean {stripped}?" if re.fullmatch("[1-9][0-9]{0,3}", stripped, re.ASCII) else ""
        raise BadValueError(f"must be that of a VLAN, {FIRST_ID} to {LAST_ID}, not {shown(value)}", hint)
    return value


def parse_trunk(value: object) -> tuple[str, ...]:
    """The VLANs of a trunk as specs have them: sorted ranges, none next to another."""
    if value == ALL:
        return (f"{FIRST_ID}-{LAST_ID}",)
    if not isinstance(value, list):
        hint = f"write [{value}]" if isinstance(value, int) and not isinstance(value, bool) else ""
        raise BadValueError(f"{_TRUNK}, not {shown(value)}", hint)
    if not value:
        raise BadValueError(f"{_TRUNK}, not none", "without trunk and vlan a NIC is in the network without tags")
    ranges = joined(_range(item) for item in value)
    return tuple(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _range(item: object) -> tuple[int, int]:
    if isinstance(item, int) and not isinstance(item, bool):
        return parse_range_bounds(item, item, item)
    found = _RANGE.fullmatch(item) if isinstance(item, str) else None
    if found is None:
        raise BadValueError(f"{_TRUNK}, not {shown(item)} among them")
    return parse_range_bounds(int(found[1]), int(found[2] or found[1]), item)


def parse_range_bounds(first: int, last: int, item: object) -> tuple[int, int]:
    """A range of VLANs; `item` is what was written."""
    if not (FIRST_ID <= first <= LAST_ID and FIRST_ID <= last <= LAST_ID):
        raise BadValueError(f"must have VLANs of {FIRST_ID} to {LAST_ID}, not {shown(item)}")
    if last < first:
        raise BadValueError(f"must have its lower VLAN first, not {shown(item)}", f'did you mean "{last}-{first}"?')
    return first, last


def nic_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """What does not go together in the NICs of a guest's table."""
    nics = table.get("nic")
    for name, nic in nics.items() if isinstance(nics, dict) else ():
        if not isinstance(nic, dict):
            continue
        if "vlan" in nic and "trunk" in nic:
            hint = "vlan: the guest knows nothing of it; trunk: it gets the tags; native: what it gets without, beside"
            yield ("nic", str(name), "trunk"), "a NIC has vlan or trunk, not both", hint
        elif "native" in nic and "trunk" not in nic:
            hint = f"write vlan = {nic['native']}" if isinstance(nic["native"], int) and "vlan" not in nic else ""
            yield ("nic", str(name), "native"), "native needs trunk: it is what comes without a tag beside that", hint


def link_mistakes(name: str, table: Mapping[str, object]) -> Iterator[Mistake]:
    """What is wrong between the keys of a VLAN link's table."""
    if table.get("link") == name:
        yield ("link",), f"link names the VLAN link {quoted(name)} itself", "it is the link that it is on"
