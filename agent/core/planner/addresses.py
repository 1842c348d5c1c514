"""The addresses of a link of ours, a bridge or a VLAN link: those of its unit, and whatever others set beside them."""

from __future__ import annotations

from collections.abc import Collection

from agent.core.actions import ChangeAddresses
from agent.core.observed import LinkState
from agent.core.planner.draft import Draft
from agent.core.reasons import Reason


def plan_addresses(draft: Draft, resource: str, link: LinkState, wanted: Collection[str]) -> None:
    """Plan to add the addresses that a link lacks, and to remove those that we once added and nobody wants."""
    present = {a.address for a in link.addresses}
    missing = tuple(a for a in wanted if a not in present)
    surplus = tuple(sorted(a.address for a in link.addresses if a.own and a.address not in wanted))
    if missing or surplus:
        draft.propose(ChangeAddresses(resource, Reason.ADDRESS, link.name, link.ifindex, missing, surplus))
