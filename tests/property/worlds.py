"""Wishes and hosts of every kind for property tests, and the planner's way from one to the other."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import strategies as st

from agent.core.actions import Action
from agent.core.desired import (
    BridgeSpec,
    Desired,
    DhcpSpec,
    DiskSpec,
    DnsSpec,
    Limits,
    NicSpec,
    Restart,
    VlanSpec,
    VmSpec,
)
from agent.core.device_actions import ArmTap
from agent.core.model.host import apply
from agent.core.observed import AddressState, DiskState, HostState, LinkState, Observed
from agent.core.planning import plan
from agent.core.routing.filters import Filters, FilterState
from agent.core.routing.ipv6 import Ipv6State, conf, proxy_delay
from agent.core.vlans import AWARE, PLAIN, BridgeVlans, PortVlans

BRIDGES = ("br-a", "br-b")
PORTS = ("eth1", "eth2", "eth3")
CARD = "eth4"
"""The link of direct NICs."""

GUESTS = ("one", "two", "three")
LIMITS = (Limits(), Limits(), Limits(cpu_weight=200), Limits(cpu_quota_us=500_000, io_weight=7, tasks=81))
DHCPS = (None, DhcpSpec("10.0.0.100", "10.0.0.120", 3600), DhcpSpec("10.0.0.100", "10.0.0.150", 3600, ports=True))
DNSS = (None, DnsSpec(), DnsSpec(("9.9.9.9",), "lan"))
SERVES: tuple[tuple[str, ...], ...] = ((), (), ("ra",), ("dhcp", "ra"))
ALLOWS: tuple[tuple[str, ...], ...] = (
    (),
    (),
    ("22/tcp", "icmp from 10.0.0.0/8"),
    ("53/udp to ::/0", "20-30/tcp", "22/tcp"),
)
BRIDGINGS = (None, PLAIN, BridgeVlans(filtering=True), AWARE)
ADDRESSES: tuple[tuple[str, ...], ...] = ((), ("10.0.0.100",), ("10.0.0.7", "fd00::7"))
MODES = ("", "", "routed", "ndp-proxy", "nat66")
TAGS: tuple[tuple[int | None, tuple[str, ...], int | None], ...] = (
    (None, (), None),
    (None, (), None),
    (20, (), None),
    (None, ("10", "20", "100-120"), None),
    (None, ("1-4094",), 1),
)
"""`vlan`, `trunk` and `native`."""
HOST_VLANS: tuple[tuple[int, ...], ...] = ((), (), (), (20,), (10, 30))
RATES = (None, None, 10_000_000, 20_000_000)
dices = st.integers(0, 1 << 30).map(Random)


@st.composite
def bridge_specs(draw: st.DrawFn) -> dict[str, BridgeSpec]:
    names = draw(st.sets(st.sampled_from(BRIDGES)))
    owner = draw(st.fixed_dictionaries({port: st.sampled_from((*BRIDGES, "")) for port in PORTS}))
    addresses = {name: draw(st.sets(st.sampled_from(["10.0.0.1/24", "10.0.1.1/24"]))) for name in sorted(names)}
    return {
        name: BridgeSpec(
            name,
            f"02:00:00:00:00:0{BRIDGES.index(name)}",
            ports=tuple(port for port in PORTS if owner[port] == name),
            addresses=tuple(own),
            mtu=draw(st.sampled_from([1500, 9000])),
            stp=draw(st.booleans()),
            adopt=draw(st.booleans()),
            dhcp=draw(st.sampled_from(DHCPS)) if "10.0.0.1/24" in own else None,
            dns=draw(st.sampled_from(DNSS)) if own else None,
            ipv6=draw(st.sampled_from(MODES)),
            vlans=tuple(
                VlanSpec(f"{name}.{one}", name, one, on_bridge=True) for one in draw(st.sampled_from(HOST_VLANS))
            ),
        )
        for name, own in addresses.items()
    }


@st.composite
def vm_spec(draw: st.DrawFn, name: str, bridges: tuple[str, ...]) -> VmSpec:
    number = GUESTS.index(name)
    nics = tuple(
        NicSpec(
            f"n{i}",
            bridge,
            f"02:00:00:00:0{number}:1{i}",
            f"{name}-n{i}",
            i,
            rate_in_bps=draw(st.sampled_from(RATES)),
            rate_out_bps=draw(st.sampled_from(RATES)),
            address=draw(st.sampled_from(ADDRESSES)),
            anti_spoof=draw(st.sampled_from([None, None, True, False])),
            serves=draw(st.sampled_from(SERVES)),
            isolated=draw(st.booleans()),
            allow=draw(st.sampled_from(ALLOWS)),
            deny=draw(st.sampled_from(ALLOWS)),
            queues=draw(st.sampled_from((1, 1, 4))),
            vhost=draw(st.sampled_from(("false", "auto", "true"))),
            vlan=tag[0],
            trunk=tag[1],
            native=tag[2],
        )
        for i, bridge in enumerate(draw(st.lists(st.sampled_from(bridges), max_size=2)) if bridges else [])
        for tag in [draw(st.sampled_from(TAGS))]
    )
    if draw(st.integers(0, 3)) == 0:
        wan = NicSpec("wan", "", f"02:00:00:00:0{number}:20", f"{name}-wan", 3, direct=CARD)
        nics += (replace(wan, queues=draw(st.sampled_from((1, 2))), vhost=draw(st.sampled_from(("false", "true")))),)
    disks = (DiskSpec("root", f"/srv/{name}.qcow2", "qcow2", 5, size_bytes=1 << 20),) if draw(st.booleans()) else ()
    return VmSpec(
        name,
        f"00000000-0000-0000-0000-00000000000{number}",
        1_900_000_000 + number,
        file=f"{name}.toml",
        restart=draw(st.sampled_from(Restart)),
        enabled=draw(st.sampled_from([True, True, True, False])),
        after=tuple(f"vm:{before}" for before in GUESTS[:number] if draw(st.booleans())),
        nics=nics,
        disks=disks,
        limits=draw(st.sampled_from(LIMITS)),
    )


@st.composite
def wishes(draw: st.DrawFn) -> Desired:
    bridges = draw(bridge_specs())
    names = sorted(draw(st.sets(st.sampled_from(GUESTS))))
    vms = {name: draw(vm_spec(name, tuple(bridges))) for name in names}
    cards = {link: VlanSpec(name, link, 7) for name, link in (("up.7", "wan"), ("eth1.7", "eth1"), ("gone.7", "gone"))}
    vlans = {cards[link].name: cards[link] for link in draw(st.sets(st.sampled_from(sorted(cards)), max_size=2))}
    return Desired(bridges, vms, vlans=vlans)


@st.composite
def hosts(draw: st.DrawFn) -> Observed:
    """A host before the agent: its own cards, some in use, perhaps foreign links of wanted names."""
    links: dict[str, LinkState] = {"lo": LinkState(1, "lo", None, True, 65536)}
    for index, port in enumerate(draw(st.sets(st.sampled_from(PORTS))), start=2):
        addresses = (AddressState("192.0.2.7/24"),) if draw(st.integers(0, 4)) == 0 else ()
        links[port] = LinkState(index, port, None, draw(st.booleans()), addresses=addresses)
    links["wan"] = LinkState(9, "wan", None, True, addresses=(AddressState("fd00::1/64"),))
    if draw(st.integers(0, 3)):
        links[CARD] = LinkState(8, CARD, None, draw(st.booleans()), draw(st.sampled_from((1500, 1400))))
    names = (conf("wan", "forwarding"), conf("wan", "proxy_ndp"), conf("wan", "accept_ra"), proxy_delay("wan"))
    settings = {name: draw(st.sampled_from([0, 1, 80])) for name in names}
    foreign = draw(st.sets(st.sampled_from(["br-b", "two-n0", "docker0"]), max_size=2))
    for index, name in enumerate(sorted(foreign), start=20):
        links[name] = LinkState(index, name, draw(st.sampled_from(["bridge", "tun"])))
        if links[name].kind == "bridge":
            bridging = draw(st.sampled_from(BRIDGINGS))
            heeds = bridging is not None and bridging.filtering
            links[name] = replace(links[name], bridging=bridging, vlans=PortVlans() if heeds else None)
    return Observed(
        links=links,
        disks={f"/srv/{name}.qcow2": DiskState(False, True, False) for name in GUESTS},
        host=HostState(
            boot_id="boot",
            services=draw(st.booleans()),
            vhost_problem=draw(st.sampled_from(("", "no vhost"))),
            bridge_vlans=draw(st.integers(0, 5)) > 0,
        ),
        max_disruption=99,
        filters=Filters(FilterState()),
        ipv6=Ipv6State(uplink=draw(st.sampled_from(["wan", "wan", ""])), settings=settings),
    )


def settle(
    desired: Desired, observed: Observed, dice: Random | None = None, start_s: float = 0.0
) -> tuple[Observed, list[Action]]:
    """Iterate the planner to its fixed point; with `dice`, do only some of each frontier, in any order."""
    done: list[Action] = []
    now_s = start_s
    for _ in range(300):
        frontier = plan(desired, observed, now_s)
        if not frontier.actions:
            if frontier.wake_at_s is None:
                return observed, done
            now_s = max(frontier.wake_at_s, now_s)
            if not plan(desired, observed, now_s).actions:
                return observed, done
            continue
        chosen = list(frontier.actions)
        if dice is not None:
            chosen = dice.sample(chosen, dice.randint(1, len(chosen)))
        for action in chosen:
            if isinstance(action, ArmTap) and action.running and action.vm not in observed.vms:
                continue  # its guest's end was in the same frontier, and was done first
            observed = apply(observed, action, now_s)
            done.append(action)
        now_s += 1.0
    raise AssertionError(f"never settles: {plan(desired, observed, now_s).actions}")
