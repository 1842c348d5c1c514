"""The planner against the model host, which asserts each action's precondition."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import Action, StopVm
from agent.core.desired import BridgeSpec, Desired, DiskSpec, Limits, NicSpec, Restart, VmSpec
from agent.core.device_actions import ArmTap
from agent.core.marks import GROUP, bridge_mark, derived_ifb, ifb_mark, tap_mark
from agent.core.model import apply
from agent.core.observed import (
    AddressState,
    DiskState,
    HostMemory,
    HostState,
    IngressState,
    Intent,
    LinkState,
    NicBackend,
    NicState,
    Observed,
)
from agent.core.planning import plan
from agent.core.rates import is_shape, shape_of
from agent.core.room import need_bytes

BRIDGES = ("br-a", "br-b")
PORTS = ("eth1", "eth2", "eth3")
GUESTS = ("one", "two", "three")
MEMORIES = tuple(HostMemory(mib << 20) for mib in (0, 700, 1300, 64_000))
"""A guest of these may take some 600 MiB: room for none, for one, for two, for all."""
LIMITS = (Limits(), Limits(), Limits(cpu_weight=200), Limits(cpu_quota_us=500_000, io_weight=7, tasks=81))
UNLIMITING = ("root", "ingress", "filter", "ifb", "ifb-half")
RATES = (None, None, 10_000_000, 20_000_000)
dices = st.integers(0, 1 << 30).map(Random)


@st.composite
def bridge_specs(draw: st.DrawFn) -> dict[str, BridgeSpec]:
    names = draw(st.sets(st.sampled_from(BRIDGES)))
    owner = draw(st.fixed_dictionaries({port: st.sampled_from((*BRIDGES, "")) for port in PORTS}))
    return {
        name: BridgeSpec(
            name,
            f"02:00:00:00:00:0{BRIDGES.index(name)}",
            ports=tuple(port for port in PORTS if owner[port] == name),
            addresses=tuple(draw(st.sets(st.sampled_from(["10.0.0.1/24", "10.0.1.1/24"])))),
            mtu=draw(st.sampled_from([1500, 9000])),
            stp=draw(st.booleans()),
            adopt=draw(st.booleans()),
        )
        for name in sorted(names)
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
        )
        for i, bridge in enumerate(draw(st.lists(st.sampled_from(bridges), max_size=2)) if bridges else [])
    )
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
    return Desired(bridges, vms)


@st.composite
def hosts(draw: st.DrawFn) -> Observed:
    """A host before the agent: its own cards, some in use, perhaps foreign links of wanted names."""
    links: dict[str, LinkState] = {"lo": LinkState(1, "lo", None, True, 65536)}
    for index, port in enumerate(draw(st.sets(st.sampled_from(PORTS))), start=2):
        addresses = (AddressState("192.0.2.7/24"),) if draw(st.integers(0, 4)) == 0 else ()
        links[port] = LinkState(index, port, None, draw(st.booleans()), addresses=addresses)
    foreign = draw(st.sets(st.sampled_from(["br-b", "two-n0", "docker0"]), max_size=2))
    for index, name in enumerate(sorted(foreign), start=20):
        links[name] = LinkState(index, name, draw(st.sampled_from(["bridge", "tun"])))
    return Observed(
        links=links,
        disks={f"/srv/{name}.qcow2": DiskState(False, True, False) for name in GUESTS},
        host=HostState(boot_id="boot", services=draw(st.booleans())),
        max_disruption=99,
    )


def is_foreign(link: LinkState) -> bool:
    return not link.alias.startswith("vmhost:") and link.name not in PORTS


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


def assert_as_wanted(desired: Desired, observed: Observed) -> None:
    for name, spec in desired.bridges.items():
        link = observed.links[name]
        if link.alias == bridge_mark(name):
            assert (link.up, link.mac, link.mtu, link.stp) == (True, spec.mac, spec.mtu, spec.stp)
            assert {a.address for a in link.addresses} >= set(spec.addresses)
    for name, state in observed.vms.items():
        assert desired.vms[name].enabled
        assert state.run_state == "running"
        assert state.limits == (desired.vms[name].limits if observed.host.services else None)
        for nic in state.spec.nics:
            tap = observed.links[nic.tap]
            assert tap.alias == tap_mark(name, nic.id)
            assert tap.master == observed.links[nic.bridge].ifindex
        present = {nic.id for nic in state.spec.nics}
        for nic in desired.vms[name].nics:
            if nic.id in present:
                assert_limited(name, replace(nic, tap=f"{name}-{nic.id}"), observed)
    used = {link.ingress.redirect for link in observed.links.values() if link.ingress is not None}
    ifbs = {link.ifindex for link in observed.links.values() if link.kind == "ifb"}
    assert ifbs <= used or not set(desired.vms) <= set(observed.vms)


def assert_limited(vm: str, nic: NicSpec, observed: Observed) -> None:
    tap, ifb = observed.links[nic.tap], observed.links.get(derived_ifb(vm, nic.id))
    for rate, link in ((nic.rate_in_bps, tap), (nic.rate_out_bps, ifb)):
        assert (rate is None) == (link is None or link.root is None)
        assert rate is None or (link and link.root and is_shape(link.root.shape, shape_of(rate, nic.mtu)))
    if nic.rate_out_bps is None:  # an empty discipline whose ifb is gone may be anybody's, and does nothing
        assert tap.ingress is None or tap.ingress.redirect is None
    else:
        assert (tap.ingress and tap.ingress.redirect) == (ifb.ifindex if ifb else 0)


def runnable(desired: Desired, observed: Observed) -> set[str]:
    """The guests that nothing foreign stands in the way of."""
    names: set[str] = set()
    for name in (name for name in GUESTS if name in desired.vms):
        spec = desired.vms[name]
        clear = all(
            observed.links[nic.bridge].alias == bridge_mark(nic.bridge)
            and observed.links.get(nic.tap, LinkState(0, nic.tap, "tun", alias=tap_mark(name, nic.id))).alias
            == tap_mark(name, nic.id)
            for nic in spec.nics
        )
        if spec.enabled and clear and all(before.removeprefix("vm:") in names for before in spec.after):
            names.add(name)
    return names


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=150, deadline=None)
def test_settles_whatever_part_of_each_frontier_is_done(desired: Desired, host: Observed, dice: Random) -> None:
    settled, _ = settle(desired, host, dice)
    assert_as_wanted(desired, settled)
    assert set(settled.vms) == runnable(desired, settled)
    straight, _ = settle(desired, host)
    assert set(straight.vms) == set(settled.vms)


@given(desired=wishes(), host=hosts(), dice=dices, memory=st.sampled_from(MEMORIES))
@settings(max_examples=100, deadline=None)
def test_nobody_is_promised_what_is_not_there_and_everybody_runs_once_it_is(
    desired: Desired, host: Observed, dice: Random, memory: HostMemory
) -> None:
    tight, _ = settle(desired, with_memory(host, memory), dice)
    promised = sum(need_bytes(state.spec, kvm=False) for state in tight.vms.values())
    assert promised <= memory.available_bytes
    left = memory.available_bytes - promised
    told = {c.resource for c in plan(desired, tight, 1000.0).conditions if c.type == "MemoryShort"}
    for name in runnable(desired, tight) - set(tight.vms):
        waits = any(before.removeprefix("vm:") not in tight.vms for before in desired.vms[name].after)
        assert waits or (f"vm/{name}" in told and left < need_bytes(desired.vms[name], kvm=False))
    ample, _ = settle(desired, with_memory(tight, MEMORIES[-1]), dice, start_s=1000.0)
    assert set(ample.vms) == runnable(desired, ample)


def with_memory(observed: Observed, memory: HostMemory) -> Observed:
    return replace(observed, host=replace(observed.host, memory=memory))


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=100, deadline=None)
def test_foreign_links_stay_as_they_were(desired: Desired, host: Observed, dice: Random) -> None:
    settled, _ = settle(desired, host, dice)
    adopted = {name for name, spec in desired.bridges.items() if spec.adopt}
    for name, link in host.links.items():
        if is_foreign(link) and name not in adopted:
            assert settled.links[name] == link
        if link.addresses:
            assert settled.links[name].addresses == link.addresses
            assert settled.links[name].master is None


@given(first=wishes(), second=wishes(), host=hosts(), dice=dices)
@settings(max_examples=150, deadline=None)
def test_an_edit_leads_to_where_a_fresh_start_leads(
    first: Desired, second: Desired, host: Observed, dice: Random
) -> None:
    settled, _ = settle(first, host)
    second = replace(second, retained={n: s for n, s in first.bridges.items() if n not in second.bridges})
    edited, _ = settle(second, settled, dice, start_s=1000.0)
    ours = {name for name, link in edited.links.items() if link.alias.startswith("vmhost:bridge/")}
    running = {nic.bridge for state in edited.vms.values() for nic in state.spec.nics}
    assert ours <= set(second.bridges) | running
    taps = {link.name for link in edited.links.values() if link.alias.startswith("vmhost:tap/")}
    wanted = {n.tap for s in (*second.vms.values(), *(v.spec for v in edited.vms.values())) for n in s.nics}
    assert taps <= wanted
    seen = {n: s.spec for n, s in edited.vms.items()}
    limited = {derived_ifb(v, n.id) for v, s in {**second.vms, **seen}.items() for n in s.nics if n.rate_out_bps}
    idle = [link for link in edited.links.values() if link.alias.split("/")[1:2] not in ([name] for name in edited.vms)]
    kept = {link.ingress.redirect for link in idle if link.ingress is not None}  # a tap that waits for its guest
    assert {x.name for x in edited.links.values() if x.kind == "ifb" and x.ifindex not in kept} <= limited
    for name, state in edited.vms.items():
        assert second.vms[name].enabled
        assert state.alive
        assert state.limits == (second.vms[name].limits if host.host.services else None)


faults = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "kill",
                "panic",
                "poweroff",
                "limits",
                "tap",
                "unmaster",
                "down",
                "bridge",
                "rename",
                "flush",
                "mac",
                *UNLIMITING,
            ]
        ),
        st.integers(0, 5),
    ),
    max_size=6,
)


def inflict(observed: Observed, kind: str, which: int) -> Observed:  # noqa: C901, PLR0912 - one arm a fault
    taps = [link for link in observed.links.values() if link.alias.startswith("vmhost:tap/")]
    bridges = [link for link in observed.links.values() if link.alias.startswith("vmhost:bridge/")]
    vms = list(observed.vms)
    if kind in {"kill", "panic", "poweroff", "limits"}:
        if not vms:
            return observed
        name = vms[which % len(vms)]
        state = observed.vms[name]
        dead = {
            "kill": replace(state, alive=False, exit_reason="killed", run_state=None),
            "panic": replace(state, run_state="guest-panicked"),
            "poweroff": replace(state, run_state="shutdown"),
            "limits": replace(state, limits=Limits(cpu_weight=9) if state.unit else None),
        }[kind]
        return replace(observed, vms={**observed.vms, name: dead})
    links = dict(observed.links)
    if kind in {"bridge", "flush", "mac"}:
        if not bridges:
            return observed
        link = bridges[which % len(bridges)]
        if kind == "bridge":
            del links[link.name]
            links = {n: replace(o, master=None) if o.master == link.ifindex else o for n, o in links.items()}
        elif kind == "flush":
            links[link.name] = replace(link, addresses=())
        else:
            links[link.name] = replace(link, mac="02:ff:ff:ff:ff:ff")
        return replace(observed, links=links)
    if not taps:
        return observed
    link = taps[which % len(taps)]
    if kind in UNLIMITING:
        return replace(observed, links=unlimit(links, link, kind))
    vms_after = dict(observed.vms)
    if kind == "tap":
        del links[link.name]
        for name, state in vms_after.items():
            nics = {i: NicState(NicBackend.DEAD) if nic.link == link.name else nic for i, nic in state.nics.items()}
            vms_after[name] = replace(state, nics=nics)
    elif kind == "rename":
        del links[link.name]
        links[f"x{link.ifindex}"] = replace(link, name=f"x{link.ifindex}")
        for name, state in vms_after.items():
            nics = {
                i: NicState(NicBackend.ATTACHED, f"x{link.ifindex}") if nic.link == link.name else nic
                for i, nic in state.nics.items()
            }
            vms_after[name] = replace(state, nics=nics)
    elif kind == "unmaster":
        links[link.name] = replace(link, master=None)
    else:
        links[link.name] = replace(link, up=False)
    return replace(observed, links=links, vms=vms_after)


def unlimit(links: dict[str, LinkState], tap: LinkState, kind: str) -> dict[str, LinkState]:
    """What somebody may do to a limit, and every point at which the making or taking away of one may be interrupted."""
    vm, nic = tap.alias.removeprefix("vmhost:tap/").split("/")
    name = derived_ifb(vm, nic)
    ifb = links.pop(name, LinkState(500 + tap.ifindex, name, "ifb"))
    if kind == "root":
        tap = replace(tap, root=None)
    elif kind == "ingress":
        tap = replace(tap, ingress=None)
    elif kind == "filter":
        tap = replace(tap, ingress=IngressState("ingress"))
        links[name] = replace(ifb, alias=ifb_mark(vm, nic))
    elif kind == "ifb-half":
        links[name] = replace(ifb, up=False, alias="", group=GROUP, root=None)
    return {**links, tap.name: tap}


@given(desired=wishes(), host=hosts(), wrong=faults, dice=dices)
@settings(max_examples=100, deadline=None)
def test_faults_are_healed_and_running_guests_stay(
    desired: Desired, host: Observed, wrong: list[tuple[str, int]], dice: Random
) -> None:
    settled, _ = settle(desired, host)
    hurt = settled
    for kind, which in wrong:
        hurt = inflict(hurt, kind, which)
    untouched = {n for n, s in settled.vms.items() if hurt.vms[n].alive and hurt.vms[n].run_state == "running"}
    healed, done = settle(desired, hurt, dice, start_s=5000.0)
    assert not any(isinstance(action, StopVm) for action in done)
    assert_as_wanted(desired, healed)
    for name in untouched:
        assert healed.vms[name].pid == settled.vms[name].pid
    off = {n for n, ends in healed.ends.items() if desired.vms[n].restart is not Restart.ALWAYS and ends}
    assert {n for n in settled.vms if n not in off} - _behind(desired, off) <= set(healed.vms)


def _behind(desired: Desired, off: set[str]) -> set[str]:
    """The guests that may wait for one that stays off."""
    behind: set[str] = set()
    for name in GUESTS:
        if name in desired.vms and any(b.removeprefix("vm:") in off | behind for b in desired.vms[name].after):
            behind.add(name)
    return behind


@given(desired=wishes(), host=hosts())
@settings(max_examples=100, deadline=None)
def test_the_fixed_point_is_left_alone_and_the_order_of_inputs_is_nothing(desired: Desired, host: Observed) -> None:
    settled, _ = settle(desired, host)
    assert plan(desired, settled, 9000.0).actions == ()
    turned = replace(
        desired, vms=dict(reversed(list(desired.vms.items()))), bridges=dict(reversed(list(desired.bridges.items())))
    )
    mirrored = replace(host, links=dict(reversed(list(host.links.items()))))
    assert {repr(a) for a in plan(turned, mirrored, 0.0).actions} == {repr(a) for a in plan(desired, host, 0.0).actions}


@given(desired=wishes(), host=hosts())
@settings(max_examples=60, deadline=None)
def test_a_restart_is_done_once(desired: Desired, host: Observed) -> None:
    settled, _ = settle(desired, host)
    asked = replace(settled, intents={name: Intent(generation=1) for name in settled.vms})
    again, done = settle(desired, asked)
    assert sorted(a.vm for a in done if isinstance(a, StopVm)) == sorted(settled.vms)
    assert set(again.vms) == set(settled.vms)
    assert all(state.generation == 1 for state in again.vms.values())
