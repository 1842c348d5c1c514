"""The agent's log in a real journal: what was done to a guest is found by its name."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from tests.lab.service import UNIT, Installed

PROBE = "/var/cache/vmhost/log-probe.py"
PROGRAM = """\
from agent.telemetry.journal import Journal, set_up_logging
set_up_logging()
Journal().record("vm/web", "probe", 400_000 * "x", why="two\\nlines")
"""

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests


def entries(installed: Installed, *matches: str) -> list[dict[str, Any]]:
    """What the journal has; journald takes entries one after another, so those of before now are asked to be there."""
    words = " ".join(shlex.quote(one) for one in matches)
    text = installed.lab.output(f"journalctl --sync && journalctl --no-pager --all -o json {words}")
    return [json.loads(line) for line in text.splitlines()]


def test_what_was_done_to_a_guest_is_found_by_its_name(installed: Installed) -> None:
    launch = entries(installed, "VMHOST_RESOURCE=vm/web", "VMHOST_KIND=launch-vm")[0]
    assert launch["MESSAGE"].startswith("launch QEMU for web: done in ")
    fields = {"_TRANSPORT": "journal", "_SYSTEMD_UNIT": UNIT, "SYSLOG_IDENTIFIER": "vmhost-agent", "PRIORITY": "6"}
    assert {name: launch[name] for name in fields} == fields
    assert (launch["VMHOST_VM"], launch["VMHOST_OUTCOME"]) == ("web", "done")
    assert float(launch["VMHOST_SECONDS"]) > 0
    of_its_pass = entries(installed, f"VMHOST_PASS_ID={launch['VMHOST_PASS_ID']}", f"_PID={launch['_PID']}")
    assert launch["MESSAGE"] in [one["MESSAGE"] for one in of_its_pass]
    assert "launch QEMU for web: done" in installed.lab.output("journalctl --no-pager -u vmhost-vm-web")
    assert not [
        one for one in entries(installed, f"_SYSTEMD_UNIT={UNIT}", "_TRANSPORT=stdout") if "pass_id" in str(one)
    ]


def test_a_line_that_no_datagram_holds_is_an_entry_too(installed: Installed) -> None:
    """Under the service's own sandbox, which must admit memory files."""
    lab = installed.lab
    lab.output(f"cat >{PROBE} <<'END'\n{PROGRAM}END")
    keep = "sed -E -e '/^(ExecReload|Restart|RestartSec|WatchdogSec|FileDescriptorStoreMax|RuntimeDirectory.*)=/d'"
    change = f"-e 's/^Type=notify/Type=oneshot/' -e 's|^ExecStart=.*|ExecStart=/opt/vmhost/bin/python3 -I {PROBE}|'"
    lab.output(f"{keep} {change} /lib/systemd/system/{UNIT} >/run/systemd/system/vmhost-log-probe.service")
    try:
        lab.output("systemctl daemon-reload && systemctl start vmhost-log-probe")
        (long,) = entries(installed, "_SYSTEMD_UNIT=vmhost-log-probe.service", "VMHOST_KIND=probe")
        assert (len(long["MESSAGE"]), long["_TRANSPORT"]) == (400_000, "journal")
        assert long["VMHOST_WHY"] == "two\nlines"
    finally:
        lab.output(f"rm -f {PROBE} /run/systemd/system/vmhost-log-probe.service; systemctl daemon-reload")
