"""The dashboard of the network: bridges, NICs, what is dropped and why, leases, forwards and what serves them."""

from __future__ import annotations

from dashboards.common import AGENT_STARTS, BRIDGE, INSTANCE, VMS
from dashboards.model import Dashboard, Query, Row
from dashboards.panels import heatmap, lines, number, table
from dashboards.promql import heat, of_guest, on_host, quantile, rate, total

NIC = ("instance", "vm", "nic")
ON_BRIDGE = 'bridge=~"$bridge"'
RUNS = of_guest("vm_state", 'state="running"')
WAYS = ("receive", "transmit")


def _now() -> Row:
    return Row(
        "Now",
        (
            number(
                "Bridges down",
                "Bridges that are not up.",
                "short",
                Query(_count_of("bridge_up", ON_BRIDGE)),
                bad_from=1,
            ),
            number(
                "NICs detached",
                "NICs of guests that run through which no frame passes.",
                "short",
                Query(f"sum(({of_guest('nic_attached')} == bool 0) * on (instance, vm) group_left () {RUNS})"),
                bad_from=1,
            ),
            number(
                "Forwards down",
                "Published ports that lead to no guest.",
                "short",
                Query(_count_of("forward_up", 'vm=~"$vm"')),
                bad_from=1,
            ),
            number(
                "Services down",
                "Supervised programs (dnsmasq, haproxy) that do not run.",
                "short",
                Query(_count_of("service_up")),
                bad_from=1,
            ),
            number(
                "Fullest pool",
                "Leases given, of what the DHCP server of a bridge can give.",
                "percentunit",
                Query(f"max({on_host('dhcp_leases', ON_BRIDGE)} / {on_host('dhcp_pool_size', ON_BRIDGE)})"),
                bad_from=0.9,
            ),
            number(
                "Findings",
                "What `vmhost doctor` found outside of our state that breaks guests; it names the command that"
                " mends it.",
                "short",
                Query(f"sum({on_host('findings')}) or vector(0)"),
                bad_from=1,
            ),
        ),
    )


def _count_of(metric: str, *matchers: str) -> str:
    return f"sum({on_host(metric, *matchers)} == bool 0)"


def _nics() -> Row:
    return Row(
        "NICs of guests",
        (
            lines(
                "Received by guests",
                "Bytes each second; the guest receives what its tap sends.",
                "Bps",
                Query(total(rate(of_guest("nic_receive_bytes_total")), *NIC), "{{vm}} {{nic}}"),
                width=12,
            ),
            lines(
                "Sent by guests",
                "Bytes each second; the guest sends what its tap receives.",
                "Bps",
                Query(total(rate(of_guest("nic_transmit_bytes_total")), *NIC), "{{vm}} {{nic}}"),
                width=12,
            ),
            lines(
                "Packets",
                "Packets each second, of all chosen guests together.",
                "pps",
                *(Query(f"sum({rate(of_guest(f'nic_{way}_packets_total'))})", way) for way in WAYS),
            ),
            lines(
                "Drops",
                "Packets each second that a tap dropped, as a rule because the guest or the host did not keep up.",
                "pps",
                *(
                    Query(total(rate(of_guest(f"nic_{way}_drops_total")), *NIC), f"{{{{vm}}}} {{{{nic}}}} {way}")
                    for way in WAYS
                ),
            ),
            lines(
                "Errors",
                "Faulty packets each second.",
                "pps",
                *(
                    Query(total(rate(of_guest(f"nic_{way}_errors_total")), *NIC), f"{{{{vm}}}} {{{{nic}}}} {way}")
                    for way in WAYS
                ),
            ),
        ),
    )


def _filters() -> Row:
    dropped = rate(of_guest("filtered_packets_total"))
    return Row(
        "Filters",
        (
            lines(
                "By reason",
                "Packets each second that filters dropped: wrong mac, ipv4 or ipv6 address, dhcp or ra that a"
                " guest may not"
                " offer, and what allow and deny say.",
                "pps",
                Query(total(dropped, "reason"), "{{reason}}"),
                width=12,
                stacked=True,
            ),
            lines(
                "By guest",
                "Packets each second that filters dropped, of a guest's NIC or for it. One guest alone: look at"
                " what runs in it.",
                "pps",
                Query(total(dropped, *NIC), "{{vm}} {{nic}}"),
                width=12,
            ),
        ),
    )


def _reach() -> Row:
    buckets = of_guest("nic_reach_seconds_bucket")
    return Row(
        "Reach",
        (
            heatmap(
                "Answers",
                "How soon guests answer ARP or neighbour discovery; darker is more often.",
                heat(buckets),
            ),
            lines(
                "p99 by NIC",
                "All but one of a hundred answers took no longer.",
                "s",
                Query(quantile(0.99, buckets, *NIC), "{{vm}} {{nic}}"),
                points=True,
            ),
            lines(
                "Up, attached, learnt",
                "How many taps are up, are joined to their bridge, and have had their guest's MAC learnt there.",
                "none",
                Query(f"sum({of_guest('nic_up')})", "up"),
                Query(f"sum({of_guest('nic_attached')})", "attached"),
                Query(f"sum({of_guest('nic_learnt')})", "learnt"),
            ),
            lines(
                "Unanswered",
                "Questions that nobody answered within a second: the guest hangs, drops them, or is not reached.",
                "cps",
                Query(total(rate(of_guest("nic_reach_unanswered_total")), *NIC), "{{vm}} {{nic}}"),
            ),
        ),
    )


def _bridges() -> Row:
    return Row(
        "Bridges, leases, forwards",
        (
            lines(
                "Ports",
                "Links that are enslaved to each bridge.",
                "none",
                Query(on_host("bridge_ports", ON_BRIDGE), "{{bridge}}"),
            ),
            lines(
                "Leases",
                "Leases that each bridge's DHCP server has given, and what it can give.",
                "none",
                Query(on_host("dhcp_leases", ON_BRIDGE), "{{bridge}} given"),
                Query(on_host("dhcp_pool_size", ON_BRIDGE), "{{bridge}} pool"),
            ),
            lines(
                "Starts of services",
                "Starts that answered an end of dnsmasq or haproxy, each hour.",
                "none",
                Query(f"increase({on_host('service_restarts_total')}[1h])", "{{service}}"),
            ),
            table(
                "Forwards",
                "Published ports and whether each leads to its guest.",
                {"up": (total(on_host("forward_up", 'vm=~"$vm"'), "instance", "vm", "port", "proto"), "bool_yes_no")},
                width=8,
            ),
            table(
                "Services",
                "Supervised programs and whether each runs.",
                {"up": (total(on_host("service_up"), "instance", "service"), "bool_yes_no")},
                width=8,
            ),
            table(
                "Findings",
                "What breaks guests though our state is right; `vmhost doctor` has rule, file or parameter, and"
                " the remedy.",
                {"found": (total(on_host("findings"), "instance", "finding", "resource"), "short")},
                width=8,
            ),
        ),
    )


DASHBOARD = Dashboard(
    name="network",
    title="vmhost: Network",
    description="Bridges, NICs, what is dropped and why, reach, leases, published ports, services, findings.",
    variables=(INSTANCE, VMS, BRIDGE),
    annotations=(AGENT_STARTS,),
    rows=(_now(), _nics(), _filters(), _reach(), _bridges()),
)
