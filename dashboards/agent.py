"""The dashboard of the agent itself: whether it keeps up, and what it does."""

from __future__ import annotations

from dashboards.common import AGENT_STARTS, INSTANCE
from dashboards.model import Dashboard, Panel, Query, Row
from dashboards.panels import heatmap, lines, number, table, words
from dashboards.promql import heat, increase, on_host, quantile, rate, total


def _now() -> Row:
    return Row(
        "Now",
        (
            words("Version", "The agent's version.", Query(on_host("build_info")), "version"),
            number(
                "Runs for", "Since the agent started.", "s", Query(f"max(time() - {on_host('start_time_seconds')})")
            ),
            number(
                "Last good pass",
                "How long ago a pass succeeded; one is due every 30 s at the latest.",
                "s",
                Query(f"max(time() - {on_host('pass_last_success_timestamp_seconds')})"),
                bad_from=90,
            ),
            number(
                "Units all valid",
                "Whether every unit file was valid when they were last read.",
                "bool_yes_no",
                Query(f"min({on_host('units_last_reload_successful')})"),
            ),
            number(
                "Actions in flight",
                "Actions that are under way.",
                "short",
                Query(f"sum({on_host('actions_in_flight')})"),
            ),
            number(
                "Guests without monitor",
                "Guests to whose QEMU the agent is not connected; those that do not run count as well.",
                "short",
                Query(f"sum({on_host('qmp_connected')} == bool 0)"),
            ),
        ),
    )


def _passes() -> Row:
    return Row(
        "Passes",
        (
            lines(
                "Passes",
                "Passes each second, by result.",
                "ops",
                Query(total(rate(on_host("passes_total")), "result"), "{{result}}"),
            ),
            _quantiles(
                "Duration of passes", "What a pass takes; milliseconds with a thousand guests.", "pass_duration_seconds"
            ),
            heatmap("Passes by duration", "Darker is more often.", heat(on_host("pass_duration_seconds_bucket"))),
            lines(
                "What rang",
                "What asked for passes: the kernel's messages, QEMU's events, unit files, timers, outcomes.",
                "ops",
                Query(total(rate(on_host("doorbell_rings_total")), "source"), "{{source}}"),
            ),
            lines(
                "Age of what is known",
                "How old the agent's view of each part of the world is, and since when not all units were valid.",
                "s",
                Query(f"max by (source) ({on_host('snapshot_age_seconds')})", "{{source}}"),
                Query(f"max(time() - {on_host('units_last_reload_success_timestamp_seconds')})", "units, all valid"),
            ),
            _quantiles(
                "Lag of the event loop",
                "How late the agent's event loop comes back from a sleep: it is kept waiting by itself or by the host.",
                "event_loop_lag_seconds",
            ),
        ),
    )


def _actions() -> Row:
    return Row(
        "Actions",
        (
            lines(
                "Actions",
                "Actions that ended, by kind and outcome.",
                "short",
                Query(total(increase(on_host("actions_total")), "kind", "outcome"), "{{kind}} {{outcome}}"),
            ),
            _quantiles("Duration of actions", "What actions take, by kind.", "action_duration_seconds", "kind"),
            _quantiles(
                "Convergence",
                "From an edit or a fault seen until all is settled again.",
                "convergence_seconds",
                "cause",
            ),
            lines(
                "Repairs",
                "Hurt resources that are well again, by kind and what was wrong. The same again and again:"
                " something fights the agent.",
                "short",
                Query(total(increase(on_host("repairs_total")), "kind", "reason"), "{{kind}} {{reason}}"),
            ),
            _quantiles("Time to repair", "From a hurt seen until it is mended.", "repair_duration_seconds", "kind"),
            _quantiles("Boot of guests", "From a guest's launch to its first instruction.", "vm_boot_duration_seconds"),
        ),
    )


def _qemu() -> Row:
    return Row(
        "QEMU's monitors",
        (
            _quantiles(
                "Answers", "How long QEMU takes to answer, by command.", "qmp_command_duration_seconds", "command"
            ),
            lines(
                "Refused commands",
                "Commands that QEMU refused or did not answer in time, by QEMU's own class of the error.",
                "short",
                Query(
                    total(increase(on_host("qmp_command_errors_total")), "command", "class"), "{{command}} {{class}}"
                ),
            ),
            lines(
                "Events",
                "Events that QEMU sent.",
                "short",
                Query(total(increase(on_host("qmp_events_total")), "event"), "{{event}}"),
            ),
            lines(
                "Connections made anew",
                "Monitor connections that were lost and are there again, by guest.",
                "short",
                Query(total(increase(on_host("qmp_reconnects_total")), "vm"), "{{vm}}"),
            ),
            lines(
                "Connected",
                "Guests whose monitor the agent is connected to, and all guests.",
                "none",
                Query(f"sum({on_host('qmp_connected')})", "connected"),
                Query(f"count({on_host('qmp_connected')})", "guests"),
            ),
            table(
                "Held guests",
                "Guests that are left as they are, with the reason; empty while there is none.",
                {"held": (total(on_host("vm_held"), "instance", "vm", "reason"), "short")},
                hidden=("held",),
                width=8,
                height=8,
            ),
        ),
    )


def _kernel() -> Row:
    return Row(
        "Kernel, units, notifications",
        (
            lines(
                "Netlink messages",
                "Messages of the kernel about links each second, by type.",
                "ops",
                Query(total(rate(on_host("netlink_events_total")), "type"), "{{type}}"),
            ),
            lines(
                "Netlink trouble",
                "Times that messages were lost (a full look follows at once), and requests that the kernel refused.",
                "short",
                Query(f"sum({increase(on_host('netlink_overflows_total'))})", "overflows"),
                Query(total(increase(on_host("netlink_errors_total")), "errno"), "{{errno}}"),
            ),
            lines(
                "Readings of units",
                "Readings of the unit directory; failure: at least one file has mistakes.",
                "short",
                Query(total(increase(on_host("unit_reloads_total")), "result"), "{{result}}"),
            ),
            lines(
                "Unit files",
                "Unit files by state.",
                "none",
                Query(total(on_host("units"), "state"), "{{state}}"),
                stacked=True,
            ),
            lines(
                "Resources",
                "Guests by state; bridges, taps and services by whether they are as their units say.",
                "none",
                Query(total(on_host("resources"), "kind", "state"), "{{kind}} {{state}}"),
            ),
            lines(
                "Notifications",
                "What people were told, by what became of it.",
                "short",
                Query(total(increase(on_host("notifications_total")), "result"), "{{result}}"),
            ),
        ),
    )


def _quantiles(title: str, description: str, histogram: str, *by: str) -> Panel:
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    buckets = on_host(f"{histogram}_bucket")
    queries = (Query(quantile(share, buckets, *by), f"{legend} p{share * 100:g}".strip()) for share in (0.5, 0.99))
    return lines(title, f"{description} p50 and p99; a gap: there was none.", "s", *queries, points=True)


DASHBOARD = Dashboard(
    name="agent",
    title="vmhost: Agent",
    description="Passes, actions, repairs, QEMU's monitors, the kernel's messages: whether the agent keeps up.",
    variables=(INSTANCE,),
    annotations=(AGENT_STARTS,),
    rows=(_now(), _passes(), _actions(), _qemu(), _kernel()),
)
