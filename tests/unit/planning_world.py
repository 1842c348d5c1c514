"""A bridge, a guest on it, and the host on which both are as they should be."""

from __future__ import annotations

from dataclasses import replace

from agent.core.desired import BridgeSpec, Desired, DiskSpec, NicSpec, VmSpec
from agent.core.marks import bridge_mark, tap_mark
from agent.core.observed import (
    AddressState,
    HostState,
    LinkState,
    NicBackend,
    NicState,
    Observed,
    VmState,
)
from agent.core.planner.draft import Plan

BRIDGE = BridgeSpec("br0", "02:00:00:00:00:01", "net.toml", addresses=("10.0.0.1/24",))
NIC = NicSpec("lan", "br0", "02:00:00:00:00:02", "web-lan", 0)
WEB = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml", nics=(NIC,))
DB = VmSpec("db", "uuid-db", 1_900_000_001, "db.toml")
BRIDGE_LINK = LinkState(
    10, "br0", "bridge", True, 1500, BRIDGE.mac, None, bridge_mark("br0"), 0, (AddressState("10.0.0.1/24", own=True),)
)
TAP = LinkState(11, "web-lan", "tun", True, 1500, "02:aa:00:00:00:02", 10, tap_mark("web", "lan"))
ATTACHED = {"lan": NicState(NicBackend.ATTACHED, "web-lan")}
RUNNING = VmState(WEB, True, 4711, run_state="running", nics=ATTACHED)
DB_RUNS = VmState(DB, True, 4712, run_state="running")
HOST = HostState(boot_id="now")
DESIRED = Desired({"br0": BRIDGE}, {"web": WEB})
SETTLED = Observed(links={"br0": BRIDGE_LINK, "web-lan": TAP}, vms={"web": RUNNING}, host=HOST)
ABSENT = replace(SETTLED, vms={})
DISK = DiskSpec("root", "/srv/web.raw", "raw", 1, size_bytes=2 << 20)
CARD = LinkState(2, "eth1", None, True)


def said(decided: Plan) -> list[tuple[str, str, str, str]]:
    return [(c.resource, c.type, c.reason, c.message) for c in decided.conditions]


def types(decided: Plan) -> list[tuple[str, str]]:
    return [(c.resource, c.type) for c in decided.conditions]


def with_vm(**changes: object) -> Observed:
    return replace(SETTLED, vms={"web": replace(RUNNING, **changes)})  # type: ignore[arg-type]


def with_links(*links: LinkState, of: Observed = SETTLED) -> Observed:
    return replace(of, links={link.name: link for link in links})
