"""What a guest's present state is called, for people and dashboards."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

from agent.core.conditions import NOTICES
from agent.core.desired import NicSpec, VmSpec
from agent.core.marks import derived_ifb, vm_resource
from agent.core.observed import Attempt, End, Intent, LinkState, NicBackend, NicState, Observed, VmState
from agent.core.planner.pauses import STILL
from agent.core.planner.policy import FAILURES, wants_to_run
from agent.core.rates import rate_text


class DisplayState(StrEnum):
    """The states that `vmhost status` and `vmhost_vm_state` name. `OFF`: the guest switched itself off."""

    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    OFF = "off"
    CRASH_LOOP = "crash-loop"
    WAITING = "waiting"
    PAUSED = "paused"
    PANICKED = "panicked"
    UNRESPONSIVE = "unresponsive"
    HELD = "held"
    FAILED = "failed"


_BY_RUN_STATE = {
    "running": DisplayState.RUNNING,
    "paused": DisplayState.PAUSED,
    "io-error": DisplayState.PAUSED,
    "watchdog": DisplayState.PAUSED,
    "suspended": DisplayState.PAUSED,
    "debug": DisplayState.PAUSED,
    "guest-panicked": DisplayState.PANICKED,
    "internal-error": DisplayState.FAILED,
    "shutdown": DisplayState.STOPPING,
}
"""QEMU's run states (qapi/run-state.json, RunState); those not named here are on their way to running."""


def vm_display_state(name: str, spec: VmSpec | None, observed: Observed, conditions: Collection[str]) -> DisplayState:
    """The one word for a guest. `conditions` are the types of its own conditions; `spec` None: no unit wants it.

    Total: every combination has an answer.
    """
    state = observed.vms.get(name)
    busy = observed.in_flight.get(vm_resource(name), "")
    intent = observed.intents.get(name, Intent())
    if "Held" in conditions:
        return DisplayState.HELD
    if busy.startswith(("stop-vm", "end-vm")):
        return DisplayState.STOPPING
    if busy.startswith(("launch-vm", "release-vm")):
        return DisplayState.STARTING
    if state is not None and state.alive:
        return _alive_state(state, spec, intent, conditions)
    if spec is None:
        return DisplayState.STOPPED
    ends = observed.ends.get(name, ())
    return _absent_state(spec, intent, ends, observed, conditions)


def _alive_state(state: VmState, spec: VmSpec | None, intent: Intent, conditions: Collection[str]) -> DisplayState:
    if "Unresponsive" in conditions:
        return DisplayState.UNRESPONSIVE
    if state.run_state in {"guest-panicked", "internal-error"}:
        return _BY_RUN_STATE[state.run_state]
    if spec is None or not spec.enabled or intent.stopped:
        return DisplayState.STOPPING
    if intent.paused and state.run_state == "prelaunch":
        return DisplayState.PAUSED
    if state.run_state is None:
        return DisplayState.RUNNING  # its process lives and QEMU is not late with an answer yet
    return _BY_RUN_STATE.get(state.run_state, DisplayState.STARTING)


def _absent_state(
    spec: VmSpec, intent: Intent, ends: tuple[End, ...], observed: Observed, conditions: Collection[str]
) -> DisplayState:
    if intent.stopped or not spec.enabled:
        return DisplayState.STOPPED
    if not wants_to_run(spec, intent, ends, observed.host.boot_id):
        return DisplayState.FAILED if ends[-1].reason in FAILURES else DisplayState.OFF
    if "CrashLoop" in conditions:
        return DisplayState.CRASH_LOOP
    if _is_failed(observed.attempts.get(f"launch-vm {vm_resource(spec.name)}")):
        return DisplayState.FAILED
    return DisplayState.WAITING if set(conditions) - NOTICES else DisplayState.STARTING


def _is_failed(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.failures > 0


def is_running_as_asked(state: VmState | None, intent: Intent) -> bool:
    """Whether a guest runs and has answered the latest restart, reset and resume: what `wait running` means."""
    return (
        state is not None
        and state.alive
        and state.run_state == "running"
        and state.generation >= intent.generation
        and state.reset_generation >= intent.reset_generation
        and state.resume_generation >= intent.resume_generation
    )


def rates_in_force(vm: str, nic: NicSpec, links: Mapping[str, LinkState]) -> tuple[str | None, str | None]:
    """The limits that a NIC has at present, as a unit would say them: towards the guest, and from it."""
    tap, ifb = links.get(nic.tap), links.get(derived_ifb(vm, nic.id))
    led = tap is not None and ifb is not None and tap.ingress is not None and tap.ingress.redirect == ifb.ifindex
    return _own_rate(tap), _own_rate(ifb if led else None)


def _own_rate(link: LinkState | None) -> str | None:
    if link is None or link.root is None or link.root.shape is None:
        return None
    return rate_text(link.root.shape.rate_bps)


def is_paused_as_asked(state: VmState | None, intent: Intent) -> bool:
    """Whether a guest stands still because its operator asked for it: what `wait paused` means."""
    return state is not None and state.alive and intent.paused and state.run_state in STILL


def nic_attached(state: VmState | None, nic: NicSpec, links: Mapping[str, LinkState]) -> bool | None:
    """Whether frames can pass between a running guest's NIC and its bridge: live descriptor, tap up and in the bridge.

    Of a direct NIC: its macvtap up, on its link, which is up too.

    None where the agent cannot see QEMU's descriptor although the tap stands as it should.
    """
    if state is None or not state.alive:
        return False
    tap, place = links.get(nic.tap), links.get(nic.direct or nic.bridge)
    if tap is None or place is None or not tap.up or (nic.direct and not place.up):
        return False
    if (tap.lower if nic.direct else tap.master) != place.ifindex:
        return False
    seen = state.nics.get(nic.id, NicState(NicBackend.UNKNOWN))
    if seen.backend is NicBackend.UNKNOWN:
        return None
    return seen.backend is NicBackend.ATTACHED and seen.link == nic.tap
