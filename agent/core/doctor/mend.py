"""Commands that make somebody else's firewall let pass what it drops."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from agent.core.doctor.packets import Cause, Packet
from agent.core.doctor.rules import HOOKS, Chain, Ruleset

DOCKER = "DOCKER-USER"

_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*", re.ASCII)
"""What nft takes for a name without quotes."""


def owner_of(rules: Ruleset, base: Chain) -> str:
    """Who made the table, as far as its names tell; empty if they do not."""
    names = {one.name for one in rules.chains if one.place == base.place}
    if base.table == "firewalld":
        return "firewalld"
    if DOCKER in names or base.table.startswith("docker"):
        return "Docker"
    if any(name.startswith(("ufw-", "ufw6-")) for name in names):
        return "ufw"
    return "libvirt" if any(name.startswith("LIBVIRT_") for name in names) else ""


KUBERNETES = ("KUBE-", "cali-", "CNI-", "FLANNEL")
"""What the chains of a node of Kubernetes, and of its networks, begin with."""


def wants_bridges_filtered(rules: Ruleset, base: Chain) -> bool:
    """Whether Docker or Kubernetes has to do with the host's rules: their networks need bridged frames filtered."""
    alike = [one for one in rules.chains if one.family == base.family]
    return any(one.name.startswith((*KUBERNETES, DOCKER)) or one.table.startswith("docker") for one in alike)


def removing(cause: Cause) -> tuple[str, ...]:
    """Take the rule away that was made against a guest or bridge of ours."""
    chain, rule = cause.chain, cause.rule
    if rule is None:
        raise ValueError("a policy is no rule")
    if chain.legacy:
        table = "" if chain.table == "filter" else f" -t {chain.table}"
        return (f"{_legacy_tool(chain)}{table} -D {shlex.join(shlex.split(rule.text)[1:])}",)
    return (f"nft delete rule {chain.family} {chain.table} {shlex.quote(chain.name)} handle {rule.handle}",)


def admitting(
    tools: frozenset[str], rules: Ruleset, cause: Cause, bridge: str, packets: Sequence[Packet]
) -> tuple[str, ...]:
    """Let these packets pass before they come to what drops them, by the tool that the table's owner uses."""
    base = cause.base
    owner = owner_of(rules, base)
    link = shlex.quote(bridge)
    if owner == "firewalld" and "firewall-cmd" in tools and all(_is_for_host(one) for one in packets):
        ports = [f"--add-port={one.fields['dport']}/{one.fields['l4proto']}" for one in packets]
        return tuple(f"firewall-cmd {lasting}{port}" for port in ports for lasting in ("", "--permanent "))
    if owner == "firewalld" and "firewall-cmd" in tools and not _is_told(packets):
        change = f"--zone=trusted --change-interface={link}"
        return (f"firewall-cmd {change}", f"firewall-cmd --permanent {change}")
    if owner == "ufw" and "ufw" in tools and base.hook in {"forward", "input"}:
        return tuple(_ufw(base, link, packets))
    if base.legacy:
        return tuple(f"{_legacy_tool(base)}{_iptables_rule(rules, cause, one)}" for one in _places(bridge, packets))
    tool = _iptables_tool(base, tools)
    if tool and not (base.hook == "postrouting" and any(not one.inward for one in packets)):  # which has no -i there
        return tuple(f"{tool}{_iptables_rule(rules, cause, one)}" for one in _places(bridge, packets))
    where = f"{base.family} {shlex.quote(base.table)} {shlex.quote(_first_chain(rules, cause))}"
    return tuple(f"nft insert rule {where} {one} accept" for one in _nft_matches(base, bridge, packets))


def _is_told(packets: Iterable[Packet]) -> bool:
    """Whether it is about the ICMP that senders are told by, which may leave by the uplink: that is not to be trusted
    for it."""
    return any("icmp" in one.fields for one in packets)


def _ufw(base: Chain, link: str, packets: Iterable[Packet]) -> Iterable[str]:
    for packet in packets:
        if base.hook == "input" and _is_for_host(packet):
            yield f"ufw allow {packet.fields['dport']}/{packet.fields['l4proto']}"
        elif base.hook == "input":
            yield f"ufw allow in on {link} to any port {packet.fields['dport']} proto {packet.fields['l4proto']}"
    if base.hook == "forward":
        if any(not one.inward for one in packets):
            yield f"ufw route allow in on {link}"
        if any(one.inward for one in packets):
            yield f"ufw route allow out on {link}"


def _legacy_tool(chain: Chain) -> str:
    return "ip6tables-legacy" if chain.family == "ip6" else "iptables-legacy"


def _iptables_tool(base: Chain, tools: frozenset[str]) -> str:
    """The iptables that made a table of nftables; empty where it was nft itself, or iptables is not installed."""
    if base.family not in {"ip", "ip6"} or HOOKS.get(base.name) != base.hook:
        return ""
    stem = "ip6tables" if base.family == "ip6" else "iptables"
    return next((one for one in (f"{stem}-nft", stem) if one in tools), "")


def _first_chain(rules: Ruleset, cause: Cause) -> str:
    """Where a rule comes before what drops: in Docker's chain for its users, if packets come by there soon enough."""
    base = cause.base
    if base.hook != "forward" or not rules.has_chain(base, DOCKER):
        return base.name
    jumps = [
        number
        for number, rule in enumerate(base.rules)
        if any(isinstance(one, dict) and (one.get("jump") or {}).get("target") == DOCKER for one in rule.expressions)
    ]
    return DOCKER if jumps and jumps[0] < cause.place else base.name


def _iptables_rule(rules: Ruleset, cause: Cause, words: str) -> str:
    table = "" if cause.base.table == "filter" else f" -t {cause.base.table}"
    return f"{table} -I {_first_chain(rules, cause)} {words} -j ACCEPT"


def _places(bridge: str, packets: Sequence[Packet]) -> tuple[str, ...]:
    """How iptables tells these packets, each way once."""
    link, found = shlex.quote(bridge), []
    for packet in packets:
        fields = packet.fields
        if is_bridged(packet):
            found.append(f"-o {link}" if packet.inward else f"-i {link} -o {link}")
        elif "icmp" in fields:
            option = "icmp-type" if packet.version == 4 else "icmpv6-type"
            found.append(f"-o {link} -p {fields['l4proto']} --{option} {fields['icmp']}")
        elif _is_asked_here(packet):
            by = "" if _is_for_host(packet) else f"-i {link} "
            found.append(f"{by}-p {fields['l4proto']} --dport {fields['dport']}")
        else:
            found.append(f"-o {link}" if packet.inward else f"-i {link}")
    return tuple(dict.fromkeys(found))


def is_bridged(packet: Packet) -> bool:
    """Whether a packet leaves by the bridge that it comes by."""
    return packet.fields.get("iifname") == packet.fields.get("oifname") is not None


def _is_asked_here(packet: Packet) -> bool:
    """Whether a packet is for a server of this host."""
    fields = packet.fields
    return "dport" in fields and not packet.inward and fields.get("state") == "new"


def _is_for_host(packet: Packet) -> bool:
    """Whether a packet is for a server of this host that anybody may ask."""
    return _is_asked_here(packet) and "iifname" not in packet.fields


def _nft_matches(base: Chain, bridge: str, packets: Sequence[Packet]) -> tuple[str, ...]:
    """How nft tells these packets, each way once. Frames are known by their bridge, or by a guest's tap."""
    found = []
    link = _quoted(bridge)
    for packet in packets:
        fields = packet.fields
        way = "oifname" if packet.inward else "iifname"
        if base.family in {"bridge", "netdev"}:
            tap, ports = fields.get(way), fields.get("ports")
            # By ports, not by `ibrname`, which not each kernel has (CONFIG_NFT_BRIDGE_META).
            named = _quoted(str(tap)) if tap else f"'{{ {', '.join(map(_bare, _names(ports)))} }}'"
            found.append(f"{way} {named}")
        elif is_bridged(packet):
            found.append(f"oifname {link}" if packet.inward else f"iifname {link} oifname {link}")
        elif "icmp" in fields:
            found.append(f"oifname {link} {'icmp' if packet.version == 4 else 'icmpv6'} type {fields['icmp']}")
        elif _is_asked_here(packet):
            by = "" if _is_for_host(packet) else f"iifname {link} "
            found.append(f"{by}{fields['l4proto']} dport {fields['dport']}")
        else:
            found.append(f"{way} {link}")
    return tuple(dict.fromkeys(found))


def _names(value: object) -> Iterable[str]:
    return value if isinstance(value, tuple) else ()


def _bare(name: str) -> str:
    """A name as nft takes it."""
    return name if _BARE.fullmatch(name) else f'"{name}"'


def _quoted(name: str) -> str:
    """A name as nft takes it, through the shell."""
    return name if _BARE.fullmatch(name) else shlex.quote(f'"{name}"')
