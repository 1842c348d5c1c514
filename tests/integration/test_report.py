"""`vmhost report`: everything for a bug report, and no secret, from a real agent and without one."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm

SECRET = "hunter2-and-more"


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read().decode()
    return found


def assert_described(found: dict[str, str]) -> None:
    """What a report holds is what its README says."""
    described = {line.split()[0].rstrip("/") for line in found["README.txt"].splitlines() if "    " in line}
    assert {name.split("/")[0] for name in found} - described == {"README.txt"}


def test_a_report_holds_what_it_says_and_no_secret(agent: AgentProcess) -> None:
    more = f'kernel = "/nowhere/vmlinuz"\nappend = "quiet rootpw={SECRET}"\n'
    agent.drop("web.toml", bare_vm("web", more))
    agent.drop("broken.toml", f'[vm.db]\nrestart = "token={SECRET}"\n')  # told with the mistake, everywhere
    agent.drop("ok.toml", bare_vm("ok"))
    agent.start(settle=False)
    agent.vmhost("wait", "running", "ok", "--timeout", "60")
    path = agent.folder / "report.tar.gz"
    told = json.loads(agent.vmhost("report", "--output", str(path), "--json"))
    found = contents(path)
    assert [one["name"] for one in told["files"]] == list(found)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in "".join(found.values())
    redactions = {one["name"]: one["redactions"] for one in told["files"]}
    for name in ("status.json", "events.jsonl", "check.txt", "units/broken.toml", "units/web.toml"):
        assert redactions[name] == 1, name
    assert told["redactions"] == sum(redactions.values())
    assert 'append = "quiet rootpw=<redacted>"' in found["units/web.toml"]
    assert {vm["name"] for vm in json.loads(found["status.json"])["vms"]} == {"ok", "web"}
    assert all(json.loads(line)["message"] for line in found["events.jsonl"].splitlines())
    assert "broken.toml:2:1: error: restart must be" in found["check.txt"]
    assert "logs/ok/qemu.log" in found
    assert "link/loopback" in found["links.txt"]
    assert "QEMU emulator version" in found["versions.txt"]
    assert_described(found)
    again = agent.command("report", "-o", str(path))
    assert (again.returncode, again.stderr) == (1, f"vmhost: {path} is there already; it is left as it is\n")


def test_a_report_without_an_agent(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    path = tmp_path / "r.tar.gz"
    told = agent.vmhost("report", "-o", str(path))
    found = contents(path)
    assert "no agent answers at" in found["no-agent.txt"]
    assert "does not exist" in found["check.txt"]
    assert_described(found)
    assert told.splitlines()[0].split() == ["FILE", "BYTES", "REDACTED"]
    assert told.endswith(f"{path} written, 0 secrets taken out; look into it before you send it to anybody\n")
    lost = agent.command("report", "-o", str(tmp_path / "no" / "r.tar.gz"))
    assert (lost.returncode, lost.stderr) == (1, f"vmhost: {tmp_path}/no/r.tar.gz: no such file or directory\n")
