"""What an edit of each key does to a guest that runs: the table of all keys, by the table of a unit that holds them.

The planner takes over what is live; everything else waits, as `pending`, for the guest's next start. The manual and
`vmhost plan` print it, and a test proves that no key of the schema is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Effect(StrEnum):
    """`live`: taken over while the guest runs. `restart`: at its next start. `replace`: then it is another guest."""

    LIVE = "live"
    RESTART = "restart"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class KeyEffect:
    """The effect of editing one key, and in words what becomes of a guest that runs."""

    effect: Effect
    says: str


def _live(says: str) -> KeyEffect:
    return KeyEffect(Effect.LIVE, says)


def _restart(says: str = "at its next start") -> KeyEffect:
    return KeyEffect(Effect.RESTART, says)


_HEALED = _live("the bridge is changed in place; guests stay connected")
_LIMIT = _live("set on its service at once")
_VLANS = "its tap, the bridge and its cards carry it at once; VLANs that stay go on uncut"
_BENEATH = "; beneath a guest's direct NIC it waits until that guest is stopped or restarted"

EFFECTS: Mapping[str, Mapping[str, KeyEffect]] = {
    "bridge": {
        "ports": _live("ports are put in and taken out one by one"),
        "addresses": _live("new ones are added first, then old ones removed"),
        "mac": _HEALED,
        "mtu": _HEALED,
        "stp": _HEALED,
        "adopt": _live("decides whether a foreign bridge of this name is taken over"),
        "dhcp": _live("its dnsmasq is started anew, within a tenth of a second; leases are kept"),
        "dns": _live("its dnsmasq is started anew, within a tenth of a second; leases are kept"),
        "ipv6": _live(
            "routes, rules and forwarding follow at once; its dnsmasq is started anew, and guests hear of it then"
        ),
        "uplink": _live("the host answers for guests on the other link, and no longer on the former"),
        "gateway": _live("the new one takes the place of the former in one go, or is refused and the former stays"),
        "routes": _live("new ones are added first, then others removed"),
        "vlan": _live("the host's links in VLANs are made, changed and deleted one by one"),
        "adopt-addresses": _live("what its port carries is moved at once; taken away, it stays until the port goes"),
        "probe": _live("counts for the next move of an uplink; one that was put back is tried again"),
        "probe-timeout": _live("counts for the next move of an uplink; one that was put back is tried again"),
        "confirm": _live("counts for the next move of an uplink; one that was put back is tried again"),
        "nat": _live("new connections follow it at once; those that there are go on as they began"),
    },
    "host-vlan": {
        "addresses": _live("new ones are added first, then old ones removed"),
        "name": _live("the link is deleted, and made again with the new name"),
    },
    "vlan": {
        "link": _live(f"the VLAN link is deleted, and made again on the other one{_BENEATH}"),
        "id": _live(f"the VLAN link is deleted, and made again with the other VLAN{_BENEATH}"),
        "addresses": _live("new ones are added first, then old ones removed"),
    },
    "vm": {
        "cpus": _live(
            "more, up to the max-cpus of its start, are plugged; fewer, or more than that, at its next start"
        ),
        "max-cpus": _restart(),
        "memory": _restart(),
        "balloon": _live("it is asked to give memory back, or to take it again, and does so in its own time"),
        "machine": _restart(),
        "firmware": _restart(),
        "secure-boot": _restart(),
        "cpu": _restart(),
        "accel": _restart(),
        "kernel": _restart(),
        "initrd": _restart(),
        "append": _restart(),
        "extra-args": _restart(),
        "vnc": _restart(),
        "rng": _restart(),
        "watchdog": _restart(),
        "hotplug-slots": _restart("at its next start it has that many free places for devices"),
        "restart": _live("counts from its next end on"),
        "stop-timeout": _live("counts from its next stop on"),
        "after": _live("counts from its next start on, and when the host shuts down"),
        "ready": _live("those that wait for it go by the new one at once"),
        "ready-timeout": _live("counts at once, from when it was first asked for"),
        "description": _live("nothing happens to the guest"),
        "enabled": _live("false shuts the guest down, true starts it"),
        "overcommit": _live("counts from its next start on"),
        "cpu-weight": _LIMIT,
        "cpu-quota": _LIMIT,
        "io-weight": _LIMIT,
        "tasks": _live("set on its service at once, but not below what its present CPUs need"),
        "apply": _live('counts at once: "restart" applies what waits'),
        "fallback": _live("counts from its next start on"),
        "publish": _live(
            "leads there at once; connections of what is taken away are ended, within half an hour what haproxy carries"
        ),
        "uuid": KeyEffect(
            Effect.REPLACE, "at its next start it is another guest: new firmware variables, MACs and places of devices"
        ),
    },
    "disk": {
        "media": _restart(),
        "path": _restart('at its next start; of media = "cdrom" at once, see there'),
        "bus": _restart(),
        "size": _live(
            "it grows under the guest, which sees its new size, and never shrinks; with another path, at its next start"
        ),
        "format": _restart(),
        "cache": _restart(),
        "read-only": _restart(),
        "discard": _restart(),
        "iops": _live("counts at once"),
        "bandwidth": _live("counts at once"),
    },
    "cdrom": {
        "path": _live("the medium is changed, put in or taken out; a guest that locked the tray is asked to let go"),
    },
    "nic": {
        "bridge": _live("its tap is moved to the other bridge; the guest sees its cable stay plugged"),
        "direct": _restart("at its next start, from or to a bridge as well"),
        "queues": _restart(),
        "vhost": _restart(),
        "mac": _restart(),
        "tap": _live("its tap is renamed"),
        "model": _restart(),
        "address": _live(
            "published ports lead there, readiness is asked there; dhcp gives it when the guest next asks"
        ),
        "mtu": _live("its tap has it at once; the guest is told at its next start"),
        "rate-in": _live("what comes to the guest is limited anew at once"),
        "rate-out": _live("what the guest sends is limited anew at once; nothing of it is lost but what waited"),
        "link": _live("the guest sees its cable plugged or unplugged at once"),
        "anti-spoof": _live("counts from the next frame on"),
        "serves": _live("counts from the next frame on"),
        "isolated": _live("its tap is isolated from others, or no longer, at once"),
        "allow": _live("counts for what is begun from then on; what is begun already goes on"),
        "deny": _live("counts for what is begun from then on; what is begun already goes on"),
        "vlan": _live(_VLANS),
        "trunk": _live(_VLANS),
        "native": _live(_VLANS),
    },
    "serial": {
        "port": _restart(),
        "to": _restart(),
    },
}
"""By the table `[bridge.NAME]`, `[vm.NAME]`, and those of a guest's devices; `cdrom` is what differs from `disk` for
one with `media = "cdrom"`."""

PLUGGING: Mapping[str, str] = {
    "disk": "plugged and unplugged while the guest runs, where a place is free (hotplug-slots); the guest must let go; "
    "the same path under another ID waits for its next start",
    "nic": "plugged and unplugged while the guest runs, where a place is free (hotplug-slots); the guest must let go; "
    "the same mac under another ID waits for its next start",
    "serial": "at its next start",
}
"""What becomes of a guest that runs when a whole device's table is added or removed."""

_SUFFIXES = ("_mib", "_bytes", "_bps", "_s")


def key_of_field(field: str) -> str:
    """The key of a unit that a field of a spec comes from: `stop_timeout_s` is `stop-timeout`."""
    for suffix in _SUFFIXES:
        field = field.removesuffix(suffix)
    return field.replace("_", "-")


def is_live(table: str, field: str) -> bool:
    """Whether a running guest takes over an edit of this field of a spec."""
    effect = EFFECTS[table].get(key_of_field(field))
    return effect is not None and effect.effect is Effect.LIVE
