"""The files that are committed: each dashboard as JSON, and the alert rules. A test says when they are stale."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dashboards import agent, guest, host, network
from dashboards.alerts import ALERTS
from dashboards.model import Dashboard, to_json
from dashboards.rules import to_yaml

DASHBOARDS: tuple[Dashboard, ...] = (host.DASHBOARD, guest.DASHBOARD, network.DASHBOARD, agent.DASHBOARD)


def files() -> Mapping[str, str]:
    """Text by file name."""
    boards = {f"{one.name}.json": json.dumps(to_json(one, DASHBOARDS), indent=1) + "\n" for one in DASHBOARDS}
    return {**boards, "alerts.yml": to_yaml(ALERTS)}
