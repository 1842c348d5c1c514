"""The JSON Schema of unit files, for editors (taplo and what is built on it): keys, texts, mistakes while typing.

An editor sees one file and one value at a time: what lies between keys or files is told by `vmhost check` only. So
whatever the check takes, the schema takes as well, and not always the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from agent.unitfile.schema import UnitFile

DIALECT = "http://json-schema.org/draft-07/schema#"
"""The draft that taplo knows best."""

TEXTS: Mapping[str, Mapping[str, str]] = {
    "UnitFile": {
        "bridge": "bridges, each as [bridge.NAME]",
        "vlan": "VLAN links of the host, each as [vlan.NAME]; those on a bridge are tables of it",
        "vm": "guests, each as [vm.NAME]",
    },
    "BridgeTable": {
        "ports": "host links to enslave, by name, altname, mac:ADDRESS or pci:PLACE; none: an isolated bridge",
        "addresses": 'addresses of the host on this bridge, such as "192.168.0.1/24"',
        "mac": "the bridge's MAC address; derived from the host and the name unless given, so it never changes",
        "mtu": "the largest packet, in bytes",
        "stp": "speak the spanning tree protocol",
        "adopt": "take over a bridge of this name that somebody else made",
        "nat": "guests with IPv4 addresses of its own subnets reach what this host reaches, behind the host's address",
        "ipv6": "how guests reach the internet over IPv6: routed (a prefix of the bridge's own, in addresses), "
        "ndp-proxy (guests' addresses are of the uplink's prefix), nat66 (behind the host's address). Guests "
        "hear of it by a dnsmasq of the bridge's own",
        "gateway": "the host's default gateway by this bridge, or one of each IP version",
        "routes": "the host's other routes by this bridge",
        "vlan": "the host's own links in VLANs of this bridge, each as [bridge.NAME.vlan.ID]",
        "uplink": "the link that leads out over IPv6; that of the default route unless given",
        "adopt-addresses": "move what the port carries (addresses, routes, MAC) to the bridge, and put everything back "
        "unless its gateways and the hosts of probe answer over the bridge within probe-timeout",
        "probe": "hosts that must answer over the bridge after such a move, beside the gateways",
        "probe-timeout": "how long gateways and hosts may take to answer; then everything is put back",
        "confirm": "put a move back unless `vmhost confirm` is said within this time after the probes passed",
        "dhcp": "give addresses to guests and whoever else asks on this bridge (IPv4), by a dnsmasq of its own; an "
        "address of a NIC is given to that guest. Debian's package dnsmasq-base",
        "dns": "answer questions for names on this bridge's addresses: guests' own, and all others by asking upstream",
    },
    "HostVlanTable": {
        "addresses": 'addresses of the host in this VLAN, such as "192.168.20.1/24"',
        "name": "of the link; BRIDGE.ID where that fits unless given",
    },
    "VlanTable": {
        "link": "the link that it is on, which is no bridge's port",
        "id": "the VLAN",
        "addresses": 'addresses of the host on it, such as "192.168.20.1/24"; none where it is a port of a bridge',
    },
    "DhcpTable": {
        "range": "the first and the last address to give away; addresses of guests' NICs may lie within or outside",
        "ports": "also to whoever is behind the bridge's ports, where DHCP is dropped otherwise, both ways",
        "lease": "for how long; who uses its address renews it in time",
    },
    "RouteTable": {
        "to": 'the network that is reached, such as "10.0.0.0/8"',
        "via": "the address of the gateway there, on a network of this bridge",
        "metric": "of several routes to one network the one with the smallest goes first; 0 for the kernel's default",
    },
    "DnsTable": {
        "upstream": "addresses of the DNS servers to ask, none: only own names are known; the host's unless given",
        "domain": "guests are found as NAME and as NAME.DOMAIN, which is asked of nobody else",
    },
    "VmTable": {
        "cpus": "number of virtual CPUs",
        "max-cpus": "how many CPUs it may get while it runs; without the key, other cpus wait for its next start",
        "memory": 'memory, such as "512M" or "4G"',
        "balloon": "how much of its memory it keeps, the rest is given back to the host; without the key all",
        "machine": "the kind of machine that the guest sees",
        "firmware": "uefi: Debian's package ovmf; the guest's variables are kept by its uuid",
        "secure-boot": "the firmware runs only what is signed, by Microsoft's keys; needs uefi on q35",
        "rng": "the guest has a source of random numbers from the host (virtio-rng)",
        "watchdog": "what follows when the guest's watchdog (i6300esb) fires; without the key it has none",
        "cpu": 'QEMU\'s CPU model, such as "host"',
        "accel": "kvm, tcg (slow, everywhere), or kvm where the host has it",
        "kernel": "kernel to boot directly; without one the guest boots from its first disk",
        "initrd": "initial ramdisk for the kernel",
        "append": "the kernel's command line",
        "extra-args": "arguments for QEMU as they are, one in each string; the guest is marked Unsupported",
        "vnc": 'a screen: true (a Unix socket, see `vmhost vnc`), or a display on a loopback address, "127.0.0.1:1"',
        "restart": "after which ends it is started again; on-failure: not after it switched itself off",
        "stop-timeout": "how long the guest may take to shut down before its QEMU is ended",
        "after": "what must be there before this one is started: guests that are ready (vm:NAME), files or folders "
        "(path:/PATH), TCP ports that take connections (tcp:ADDRESS:PORT, IPv6 in brackets)",
        "ready": "when those that go after this one are started: once it runs, or once it takes connections at a TCP "
        "port, of its own first address unless one is given",
        "ready-timeout": "after which time it is told (NotReady) that it is not ready; those that go after it wait on",
        "description": "for people",
        "enabled": "false: the guest is stopped and stays so",
        "overcommit": "start it also when the host has not enough memory for all that it may take",
        "hotplug-slots": "free places for disks and NICs that are plugged while it runs; it starts with that many",
        "cpu-weight": "its share of the CPUs when they are short, beside the other guests' 100",
        "cpu-quota": 'the most CPU time that its QEMU gets, in per cent of one CPU, such as "150%"',
        "io-weight": "its share of the disks when they are short, beside the other guests' 100",
        "tasks": "the most threads that its QEMU may have; at least 80 and one for each CPU",
        "apply": "when an edit that needs a restart takes effect: at its own reboot or `vmhost restart`, or at once",
        "fallback": "started as it last ran where QEMU refuses its edited unit",
        "publish": "ports of this host that lead to the guest: [ADDRESS:]PORT[-PORT][:GUEST PORT][/tcp|/udp]; "
        "over IPv6 to an IPv4 address TCP only, by haproxy",
        "uuid": "the guest's identity; made once and kept unless given. Give it to rename a guest",
        "disk": "disks, each as [vm.NAME.disk.ID]",
        "nic": "network cards, each as [vm.NAME.nic.ID]",
        "serial": "serial ports beside the console, each as [vm.NAME.serial.ID]",
    },
    "DiskTable": {
        "media": "cdrom: a drive that is only read from; booted from when nothing is on the first disk",
        "path": "the image, or a block device; a cdrom without one is empty",
        "bus": "of a cdrom: sata (every installer knows it), or virtio (for kernels that know nothing else)",
        "size": "created when missing, grown when larger, never shrunk",
        "format": "told by the suffix (.qcow2, .raw, .img) unless given; never probed",
        "cache": "how the host caches writes, by the names of qemu(1)",
        "read-only": "the guest cannot write to it",
        "discard": "what the guest trims is given back to the host",
        "iops": "at most so many operations per second, reads and writes together",
        "bandwidth": "at most so many bytes per second, reads and writes together, such as 50M",
    },
    "SerialTable": {
        "port": "virtio: the guest finds it as /dev/virtio-ports/ID; or an ISA port by its Linux name",
        "to": "a socket for `vmhost console NAME --port ID`, or a log, both in the guest's run directory",
    },
    "NicTable": {
        "bridge": "the bridge that it is plugged into; a NIC has this or direct",
        "direct": "a link of the host that it is put on by a macvtap, without any bridge. The guest and the host "
        "cannot talk by it",
        "mac": "derived from the guest's uuid and the NIC's name unless given",
        "tap": "the host's end of it; a readable name is derived unless given",
        "model": "the card that the guest sees",
        "mtu": "the largest packet, in bytes; the guest is told",
        "rate-in": 'at most this much goes to the guest, such as "10Mbit" (kbit, Mbit, Gbit; powers of ten)',
        "rate-out": "at most this much comes from the guest, as for rate-in",
        "address": "the address that the guest has there, or several, without prefix; shown in status, asked for "
        "ready, and where publish leads. A bridge with dhcp gives it its IPv4 one, with ipv6 its IPv6 one",
        "link": "down: the guest sees its cable unplugged",
        "anti-spoof": "what it sends with another MAC address than its own is dropped, and with another IP address "
        "than those of address, if it has any; true where there is an address. false for guests that route or bridge",
        "serves": "what it may serve to its neighbours: dhcp, ra (router advertisements). Of a NIC that is held by "
        "anti-spoof, or on a bridge with dhcp, it is dropped otherwise",
        "isolated": "it reaches the host, the bridge's ports and guests that are not isolated, but no isolated one",
        "allow": "what may be begun towards it (from, or neither word) and by it (to); with an entry of a direction "
        "all else of that direction is dropped. It names the guest's own ports",
        "deny": "what may not be begun, as allow; goes before allow",
        "queues": "how many pairs of queues a virtio card has, so that several CPUs of the guest send and receive at "
        "once; auto: one for each CPU that it may have",
        "vhost": "the host's kernel carries its frames instead of QEMU (vhost-net); auto: where guests have KVM and "
        "the host has /dev/vhost-net. A deleted tap of such a card is healed by a replug",
        "vlan": "the VLAN that it is in; the guest sees no tags",
        "trunk": 'VLANs that the guest gets with their tags, such as [10, 20, "100-120"], or "all"',
        "native": "beside trunk: the VLAN that the guest gets without a tag; 1 is the network without tags",
    },
}
"""What each key is for, by table."""


def json_schema() -> dict[str, Any]:
    """The schema as plain JSON values, always in the same order."""
    schema = UnitFile.model_json_schema(by_alias=True)
    for name, table in {**schema["$defs"], "UnitFile": schema}.items():
        table.pop("title", None)
        table["description"] = "A unit file of vmhost." if name == "UnitFile" else table["description"].split(";")[0]
        for key, value in table["properties"].items():
            table["properties"][key] = _tidied(value, TEXTS[name].get(key))
    return {"$schema": DIALECT, "title": "vmhost unit file", **schema}


def _tidied(value: MutableMapping[str, Any], text: str | None) -> dict[str, Any]:
    """A key as it is written: TOML has no null, and sizes and durations are texts there."""
    choices = [choice for choice in value.get("anyOf", []) if choice != {"type": "null"}]
    plain = {key: part for key, part in value.items() if key not in {"anyOf", "title", "default", "x-or-boolean"}}
    if value.get("x-or-boolean"):
        choices.insert(0, {"type": "boolean"})
    if len(choices) == 1:
        plain |= choices[0]
    elif choices:
        plain["anyOf"] = choices
    if text is not None:
        plain["description"] = text
    if value.get("default") not in (None, "", []):
        plain["default"] = _as_written(value["default"], plain)
    if "patternProperties" in plain:
        plain["additionalProperties"] = False
        del plain["propertyNames"]  # the patterns say the same, and taplo knows only them
    if plain.get("type") == "array":
        plain.setdefault("uniqueItems", True)
    return plain


def _as_written(default: object, plain: Mapping[str, Any]) -> object:
    if plain.get("type") == "string" and isinstance(default, int | float):
        if default % 3600 == 0 and "h" in plain["pattern"]:
            return f"{default / 3600:.0f}h"
        return f"{default:.0f}{'s' if 's' in plain['pattern'] else 'M'}"
    return default
