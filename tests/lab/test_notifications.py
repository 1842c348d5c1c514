"""A command that is told of notifications, within the confinement of the packaged service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.service import UNIT, Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

FOLDER = "/var/lib/notified"
INSIDE, OUTSIDE = "/usr/local/bin/vmhost-notify", "/usr/local/bin/vmhost-notify-outside"
DROP_IN = f"/run/systemd/system/{UNIT}.d/notify.conf"
EXAMPLE = "/usr/share/doc/vmhost/notify.conf"
COMMAND = f"""#!/bin/sh
cat >{FOLDER}/part.inside
touch /usr/local/refused 2>>{FOLDER}/refused
systemd-run --quiet --collect --pipe --wait {OUTSIDE} <{FOLDER}/part.inside || exit 1
mv {FOLDER}/part.inside {FOLDER}/inside.json
"""
RUN_OUTSIDE = f"#!/bin/sh\ncat >{FOLDER}/outside.json; touch /usr/local/allowed\n"


@pytest.fixture
def told(installed: Installed) -> Iterator[Installed]:
    """The service with the packaged example of a drop-in, and a link of somebody else's whose name a unit wants."""
    lab = installed.lab
    lab.output(f"mkdir -p {FOLDER} && install -D {EXAMPLE} {DROP_IN}")
    for path, text in ((INSIDE, COMMAND), (OUTSIDE, RUN_OUTSIDE)):
        lab.write(path, text.encode())
        lab.output(f"chmod 755 {path}")
    try:
        lab.output(f"systemctl daemon-reload && systemctl restart {UNIT}")
        lab.output("ip link add br-foreign type veth peer name other-end")
        lab.write("/etc/vmhost.d/foreign.toml", b"[bridge.br-foreign]\n")
        yield installed
    finally:
        lab.output(f"rm -rf {DROP_IN} {FOLDER} {INSIDE} {OUTSIDE} /etc/vmhost.d/foreign.toml /usr/local/allowed")
        lab.output("ip link delete br-foreign", check=False)
        lab.output(f"systemctl daemon-reload && systemctl restart {UNIT}")


def document(installed: Installed, name: str) -> dict[str, Any]:
    installed.lab.wait_until(
        lambda: installed.lab.output(f"ls {FOLDER}/{name}", check=False) != "", "the command to be told"
    )
    found: dict[str, Any] = json.loads(installed.lab.output(f"cat {FOLDER}/{name}"))
    return found


def test_a_command_is_told_confined_and_may_have_systemd_run_the_rest(told: Installed) -> None:
    one = document(told, "inside.json")
    assert (one["resource"], one["type"], one["state"]) == ("bridge/br-foreign", "Conflict", "problem")
    assert one["host"] == told.lab.output("hostname").strip()
    assert document(told, "outside.json") == one
    assert "Read-only file system" in told.lab.output(f"cat {FOLDER}/refused")
    assert told.lab.output("ls /usr/local/refused /usr/local/allowed", check=False) == "/usr/local/allowed\n"
    told.lab.wait_until(
        lambda: "notified" in [event["kind"] for event in told.events()], "the agent to note that it told"
    )
    assert "NotificationFailed" not in told.lab.output("vmhost status")
