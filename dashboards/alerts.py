"""What wants a person: each alert, with what it is drawn from. docs/runbooks.md says what to do about each.

Where a guest is paused, held, panicked, silent or in a crash loop, that is told by its own alert or was asked for, so
`VmhostGuestDown` tells of the others only.
"""

from __future__ import annotations

from dashboards.rules import Alert, Bound

UP = "running|paused|held|crash-loop|panicked|unresponsive"
ON = "on {{ $labels.instance }}"
LEFT_ALONE = (
    'label_replace(label_replace(vmhost_vm_pending_changes > 0 or vmhost_vm_held > 0, "name", "$1", "vm", "(.+)"),'
    ' "kind", "vm", "", "")'
)
"""Guests that are out of sync because something waits for their operator, with the labels of `resource_in_sync`."""


def _p99(histogram: str, within: str, *by: str) -> str:
    labels = ", ".join((*by, "le"))
    return f"histogram_quantile(0.99, sum by ({labels}) (rate({histogram}_bucket[{within}])))"


def _lost(what: str) -> str:
    names = (f"rate(vmhost_nic_{way}_{what}_total[5m])" for way in ("receive", "transmit"))
    return f"({' + '.join(names)})"


AGENT = (
    Alert(
        group="agent",
        name="VmhostAgentDown",
        bound=Bound('up{job="vmhost"}', "== 0"),
        holds="2m",
        severity="critical",
        summary=f"No agent answers {ON}",
        description="Guests run on, but nothing heals them, and no unit file is applied, until the agent is back.",
    ),
    Alert(
        group="agent",
        name="VmhostPassStalled",
        bound=Bound("time() - vmhost_pass_last_success_timestamp_seconds", "> 90"),
        holds="1m",
        severity="critical",
        summary=f"The agent {ON} does not get through a pass",
        description="The last good pass was {{ $value | humanizeDuration }} ago; one is due every 30 s. Nothing is"
        " healed.",
    ),
    Alert(
        group="agent",
        name="VmhostUnitInvalid",
        bound=Bound('sum by (instance, state) (vmhost_units{state=~"invalid|held"})', "> 0"),
        holds="5m",
        severity="warning",
        summary=f"Unit files {ON} are {{{{ $labels.state }}}}: {{{{ $value }}}}",
        description="What they hold is left on its last good version, or is not there. `vmhost check` has the"
        " mistakes.",
    ),
    Alert(
        group="agent",
        name="VmhostOutOfSync",
        bound=Bound(f"(vmhost_resource_in_sync unless on (instance, kind, name) {LEFT_ALONE})", "== 0"),
        holds="15m",
        severity="warning",
        summary=f"{{{{ $labels.kind }}}} {{{{ $labels.name }}}} {ON} is not as its unit says",
        description="The agent has tried for 15 minutes. `vmhost why NAME` says what stands in the way.",
    ),
    Alert(
        group="agent",
        name="VmhostRepairsFlapping",
        bound=Bound("sum by (instance, kind, reason) (increase(vmhost_repairs_total[15m]))", "> 10"),
        holds="5m",
        severity="warning",
        summary=f"Something fights the agent {ON}: {{{{ $labels.kind }}}}, {{{{ $labels.reason }}}}",
        description="The same was mended {{ $value | humanize }} times within 15 minutes. `vmhost events` shows the"
        " repairs.",
    ),
    Alert(
        group="agent",
        name="VmhostQmpSlow",
        bound=Bound(_p99("vmhost_qmp_command_duration_seconds", "5m", "instance"), "> 1"),
        holds="10m",
        severity="warning",
        summary=f"QEMU answers slowly {ON}",
        description="One of a hundred commands takes {{ $value | humanizeDuration }} or more: storage hangs, or CPUs"
        " are short.",
    ),
    Alert(
        group="agent",
        name="VmhostNetlinkOverflow",
        bound=Bound("increase(vmhost_netlink_overflows_total[15m])", "> 3"),
        holds="0m",
        severity="info",
        summary=f"The kernel's messages about links overflow {ON}",
        description="Each is answered by a full look, so nothing is missed; so many mean that links change faster than"
        " is read.",
    ),
)

GUESTS = (
    Alert(
        group="guests",
        name="VmhostGuestDown",
        bound=Bound(
            'vmhost_vm_desired_state{state="running"}'
            f' - on (instance, vm) group_left () sum by (instance, vm) (vmhost_vm_state{{state=~"{UP}"}})',
            "> 0",
        ),
        holds="5m",
        severity="critical",
        summary=f"Guest {{{{ $labels.vm }}}} {ON} is to run and does not",
        description="`vmhost why {{ $labels.vm }}` says what it waits for, or why its launch fails.",
    ),
    Alert(
        group="guests",
        name="VmhostGuestCrashLoop",
        bound=Bound('max_over_time(vmhost_vm_state{state="crash-loop"}[5m])', "> 0"),
        holds="0m",
        severity="critical",
        summary=f"Guest {{{{ $labels.vm }}}} {ON} ends again and again",
        description="It ended five times within two minutes; it is started again, at most a minute after each end.",
    ),
    Alert(
        group="guests",
        name="VmhostGuestPanicked",
        bound=Bound(
            'max by (instance, vm) (max_over_time(vmhost_vm_state{state="panicked"}[15m])'
            ' or increase(vmhost_vm_exits_total{reason="panic"}[15m]))',
            "> 0",
        ),
        holds="0m",
        severity="critical",
        summary=f"The kernel of guest {{{{ $labels.vm }}}} {ON} panicked",
        description="Its console has the kernel's last words.",
    ),
    Alert(
        group="guests",
        name="VmhostGuestPausedOnIoError",
        bound=Bound('vmhost_conditions{type="PausedOnIoError"}', "> 0"),
        holds="1m",
        severity="critical",
        summary=f"Guest {{{{ $labels.name }}}} {ON} stands still: no room for its writes",
        description="It goes on by itself once there is room on the storage of its disk.",
    ),
    Alert(
        group="guests",
        name="VmhostGuestUnresponsive",
        bound=Bound('vmhost_vm_state{state="unresponsive"}', "> 0"),
        holds="1m",
        severity="critical",
        summary=f"QEMU of guest {{{{ $labels.vm }}}} {ON} does not answer",
        description="Its process is there and its monitor silent: storage that hangs, a stopped process, or a host out"
        " of breath.",
    ),
    Alert(
        group="guests",
        name="VmhostPendingForDays",
        bound=Bound("min_over_time(vmhost_vm_pending_changes[1d])", "> 0"),
        holds="2d",
        severity="info",
        summary=f"Changes of guest {{{{ $labels.vm }}}} {ON} have waited for a restart for days",
        description="`vmhost status {{ $labels.vm }}` lists them; `vmhost restart {{ $labels.vm }}` applies them.",
    ),
)

DISKS = (
    Alert(
        group="disks",
        name="VmhostDiskLatencyHigh",
        bound=Bound(_p99("vmhost_block_latency_seconds", "10m", "instance", "vm", "disk", "op"), "> 0.1"),
        where=Bound("sum by (instance, vm, disk, op) (rate(vmhost_block_latency_seconds_count[10m]))", "> 0.1"),
        by="instance, vm, disk, op",
        holds="10m",
        severity="warning",
        summary=f"Disk {{{{ $labels.disk }}}} of guest {{{{ $labels.vm }}}} {ON} is slow",
        description="One {{ $labels.op }} of a hundred takes {{ $value | humanizeDuration }} or more, and there is more"
        " than one in ten seconds.",
    ),
    Alert(
        group="disks",
        name="VmhostDiskErrors",
        bound=Bound("sum by (instance, vm, disk, op) (increase(vmhost_block_errors_total[10m]))", "> 0"),
        holds="0m",
        severity="critical",
        summary=f"Disk {{{{ $labels.disk }}}} of guest {{{{ $labels.vm }}}} {ON} has errors",
        description="{{ $value | humanize }} times a {{ $labels.op }} failed within 10 minutes: its storage is faulty,"
        " full, or gone.",
    ),
)

NETWORK = (
    Alert(
        group="network",
        name="VmhostTapDetached",
        bound=Bound("vmhost_nic_attached", "== 0"),
        where=Bound('vmhost_vm_state{state="running"}', "== 1"),
        by="instance, vm",
        holds="1m",
        severity="critical",
        summary=f"NIC {{{{ $labels.nic }}}} of guest {{{{ $labels.vm }}}} {ON} is cut off",
        description="The guest runs, and no frame passes between this NIC and its bridge. A tap is mended within"
        " milliseconds as a rule.",
    ),
    Alert(
        group="network",
        name="VmhostNicDrops",
        bound=Bound(f"{_lost('drops')} / clamp_min({_lost('packets')} + {_lost('drops')}, 1)", "> 0.01"),
        holds="10m",
        severity="warning",
        summary=f"NIC {{{{ $labels.nic }}}} of guest {{{{ $labels.vm }}}} {ON} loses packets",
        description="{{ $value | humanizePercentage }} of its packets are dropped at its tap: the guest does not keep"
        " up, or it is limited.",
    ),
    Alert(
        group="network",
        name="VmhostPoolNearlyFull",
        bound=Bound("vmhost_dhcp_leases / vmhost_dhcp_pool_size", "> 0.9"),
        holds="10m",
        severity="warning",
        summary=f"The DHCP pool of bridge {{{{ $labels.bridge }}}} {ON} is nearly full",
        description="{{ $value | humanizePercentage }} of its addresses are leased; who comes when none is left gets"
        " none.",
    ),
)

ALERTS = (*AGENT, *GUESTS, *DISKS, *NETWORK)
