"""What a NIC hangs on and how many queues it has: its keys, what is wrong with them, and what follows for its guest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.desired import NicSpec, VmSpec
from agent.core.edits.digest import digest, pending_changes
from agent.core.edits.live import live_edit
from agent.core.observed import Refusal
from agent.core.planner.fallback import start_of
from agent.unitfile.parse import parse_unit
from agent.unitfile.specs import vm_spec
from tests.unit.planning_world import NIC, RUNNING, WEB
from tests.unit.unit_directory import Directory, said

MISTAKES = {
    "queues = 0": '3:1: error: queues must be a whole number, 1 to 16, or "auto", not 0',
    "queues = 17": '3:1: error: queues must be a whole number, 1 to 16, or "auto", not 17',
    "queues = true": '3:1: error: queues must be a whole number, 1 to 16, or "auto", not true',
    'queues = "4"': '3:1: error: queues must be a whole number, 1 to 16, or "auto", not "4" (did you mean 4?)',
    'vhost = "on"': '3:1: error: vhost must be true, false or "auto", not "on"',
    'vhost = ["true"]': '3:1: error: vhost must be true, false or "auto", not an array',
    'vhost = "true"': '3:1: error: vhost must be true, false or "auto", not "true" (did you mean true?)',
    'queues = 2\nmodel = "e1000"': '3:1: error: queues is for virtio NICs, not for model = "e1000"',
    'vhost = true\nmodel = "e1000"': '3:1: error: vhost is for virtio NICs, not for model = "e1000"',
}
ON_A_BRIDGE_ONLY = {
    'address = "10.0.0.7"': "the host cannot reach the guest there, neither to publish a port nor to give an address",
    "anti-spoof = true": "frames pass no bridge that could drop them",
    'serves = ["ra"]': "frames pass no bridge that could drop them",
    "isolated = true": "it is a property of a bridge's port",
    'allow = ["22/tcp"]': "frames pass no bridge that could drop them",
    'deny = ["22/tcp"]': "frames pass no bridge that could drop them",
    'rate-in = "10Mbit"': "what comes to a macvtap passes no queue of the host that could wait",
    'rate-out = "10Mbit"': "what comes to a macvtap passes no queue of the host that could wait",
}


def errors_of(text: str) -> list[str]:
    return [str(error).removeprefix("u.toml:") for error in parse_unit("u.toml", text.encode()).errors]


def spec_of(text: str) -> VmSpec:
    unit = parse_unit("u.toml", text.encode())
    assert not unit.errors
    return vm_spec("web", unit.vms["web"], "u.toml", uuid="u", uid=1, slots={"nic/lan": 0}, mtus={}, after=())


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_wrong_queues_and_vhost(text: str, message: str) -> None:
    assert errors_of(f'[vm.web.nic.lan]\nbridge = "br0"\n{text}') == [message]


@pytest.mark.parametrize(("text", "why"), ON_A_BRIDGE_ONLY.items(), ids=range(len(ON_A_BRIDGE_ONLY)))
def test_what_a_direct_nic_cannot_have(text: str, why: str) -> None:
    key = text.partition(" ")[0]
    wanted = f"3:1: error: {key} needs a bridge, and this NIC is direct: {why} (bridge = instead of direct =)"
    assert errors_of(f'[vm.web.nic.lan]\ndirect = "eth1"\n{text}') == [wanted]
    assert errors_of(f'[vm.web.nic.lan]\nbridge = "br0"\n{text}') == []


def test_a_nic_is_on_one_thing() -> None:
    both = '[vm.web.nic.lan]\nbridge = "br0"\ndirect = "eth1"'
    assert errors_of(both) == ["3:1: error: a NIC has a bridge or is direct, not both (take one of them out)"]
    assert errors_of('[vm.web.nic.lan]\ndirect = "eth1"\nanti-spoof = false\nallow = []') == []


def test_auto_is_a_queue_for_each_cpu_that_there_may_be() -> None:
    nic = '[vm.web.nic.lan]\nbridge = "br0"\nqueues = "auto"\n'
    cpus = ("", "cpus = 3\n", "max-cpus = 5\n")
    assert [spec_of(f"[vm.web]\n{one}{nic}").nics[0].queues for one in cpus] == [1, 3, 5]
    assert spec_of(f"[vm.web]\ncpus = 40\n{nic}").nics[0].queues == 16
    lan = spec_of('[vm.web.nic.lan]\ndirect = "eth1"\nvhost = true').nics[0]
    assert (lan.direct, lan.bridge, lan.vhost, lan.queues, lan.held) == ("eth1", "", "true", 1, False)


def test_a_link_is_a_port_or_carries_nics() -> None:
    units = Directory()
    assert said(units.save(a='[vm.web.nic.wan]\ndirect = "eth1"\n', b='[vm.db.nic.wan]\ndirect = "eth1"\n')) == []
    assert said(units.save(c='[bridge.br0]\nports = ["eth1"]\n')) == [
        'c:2:10: error: port "eth1" is also the link that carries [vm.web.nic.wan] in a'
    ]


def test_a_direct_nic_on_a_port_is_told_where_to_go() -> None:
    units = Directory()
    units.save(a='[bridge.br0]\nports = ["eth1"]\n')
    wanted = 'direct "eth1" is also a port of [bridge.br0] in a (bridge = "br0" puts the NIC there)'
    assert said(units.save(b='[vm.web.nic.wan]\ndirect = "eth1"\n')) == [f"b:2:1: error: {wanted}"]


def test_queues_and_vhost_wait_for_the_next_start() -> None:
    wanted = replace(WEB, nics=(replace(NIC, queues=4, vhost="true"),))
    assert live_edit(RUNNING, wanted) is None
    assert [(c.key, c.before, c.after) for c in pending_changes(WEB, wanted)] == [
        ("nic.lan.queues", "1", "4"),
        ("nic.lan.vhost", "false", "true"),
    ]


def test_from_a_bridge_onto_a_link_nothing_is_taken_over_that_belongs_to_the_bridge() -> None:
    """Its filters are those of where it is, until it is there no longer."""
    lan = replace(NIC, anti_spoof=True, address=("10.0.0.7",), rate_in_bps=10_000_000)
    state = replace(RUNNING, spec=replace(WEB, nics=(lan,)))
    there = NicSpec("lan", "", NIC.mac, NIC.tap, NIC.slot, direct="eth1", link="down")
    edit = live_edit(state, replace(WEB, nics=(there,)))
    assert edit is not None
    assert edit.spec.nics == (replace(lan, link="down"),)
    keys = [c.key for c in pending_changes(edit.spec, replace(WEB, nics=(there,)))]
    assert keys == ["nic.lan.bridge", "nic.lan.direct", "nic.lan.rate-in"]


def test_a_guest_that_falls_back_stays_on_what_it_was_on() -> None:
    wanted = replace(WEB, nics=(replace(NIC, bridge="", direct="eth1"),))
    refusal = Refusal(digest(wanted), "no", WEB, times=2)
    assert start_of(wanted, {WEB.uuid: refusal}).spec.nics == WEB.nics


def test_who_ran_before_these_keys_has_the_fingerprint_of_then() -> None:
    assert digest(WEB) == digest(replace(WEB, nics=(replace(NIC, queues=1, vhost="false", direct=""),)))
    assert (
        len({digest(replace(WEB, nics=(nic,))) for nic in (NIC, replace(NIC, queues=2), replace(NIC, vhost="auto"))})
        == 3
    )
