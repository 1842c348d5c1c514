"""What is in the package: units, manual pages, completion, schema, as the tools that read them see it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.unitfile.json_schema import json_schema
from dashboards import written
from docs import completion, manual
from tests.lab.service import UNIT, Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

ROOT = Path(__file__).resolve().parent.parent.parent
COMPLETE = """
. {script}
compopt() {{ :; }}
COMP_WORDS=({words}) COMP_CWORD={last}
_vmhost
echo "${{COMPREPLY[*]}}"
"""


def test_systemd_finds_nothing_wrong_with_the_units(installed: Installed) -> None:
    done = installed.lab.try_run(f"systemd-analyze verify {UNIT} vmhost-guests.service vmhost.slice")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_udev_marks_our_links_and_no_others(installed: Installed) -> None:
    """NetworkManager reads the one property, our file for systemd-networkd matches the other. A lab has no udevd."""
    lab = installed.lab
    lab.output("ip link add foreign type bridge")
    try:
        for link, properties in {"br-demo": 2, "web-lan": 2, "foreign": 0, "lo": 0}.items():
            said = lab.output(f"udevadm test --action=add /sys/class/net/{link} 2>&1").splitlines()
            marks = [line for line in said if line in {"NM_UNMANAGED=1", "VMHOST_LINK=1"}]
            assert len(marks) == properties, (link, said)
    finally:
        lab.output("ip link delete foreign")


def test_lintian_finds_no_error(package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--fail-on", "error", "--allow-root", str(package)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ["vmhost.1", "vmhost-agent.8", "vmhost.unit.5"])
def test_a_manual_page_is_found_and_renders_without_a_warning(page: str, installed: Installed) -> None:
    name, _, section = page.rpartition(".")
    path = installed.lab.output(f"man --where {section} {name}").strip()
    assert path.endswith(f"/{page}.gz")
    done = installed.lab.try_run(f"man --warnings -E UTF-8 -l {path}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"SEE ALSO" in done.stdout


def test_the_manual_says_what_the_commands_and_the_schema_say(installed: Installed) -> None:
    shown = installed.lab.output("man 1 vmhost | col -b 2>/dev/null || man 1 vmhost")
    for command in ("check", "plan", "undo"):
        assert f"   {command}\n" in shown
    unit_page = manual.pages()["vmhost.unit.5"]
    for table, (name, _) in manual.TABLES.items():
        assert f".SH [{table}]\n" in unit_page
        assert name in json_schema()["$defs"]
    assert len(manual.TABLES) == len(json_schema()["$defs"])
    assert "stop-timeout" in installed.lab.output("man 5 vmhost.unit")
    assert "--max-disruption" in installed.lab.output("man 8 vmhost-agent")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("vmhost", "st"), "status start stop"),
        (("vmhost", "--units", "units/demo", "why", ""), "db br-demo web"),
        (("vmhost", "wait", ""), "settled in-sync running stopped paused held"),
        (("vmhost", "wait", "running", "--units", "units/demo", "w"), "web"),
        (("vmhost", "init", "--ker"), "--kernel"),
        (("vmhost", "check", "unit"), "units"),
        (("vmhost", "undo", "--to", ""), ""),
    ],
)
def test_completion(words: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    script = tmp_path / "vmhost"
    script.write_text(completion.bash())
    quoted = " ".join(f"'{word}'" for word in words)
    program = COMPLETE.format(script=script, words=quoted, last=len(words) - 1)
    done = subprocess.run(["bash", "-uc", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == expected


def test_what_editors_and_readers_look_for_is_there(installed: Installed) -> None:
    lab = installed.lab
    assert lab.output("cmp /usr/share/vmhost/schema.json /usr/share/doc/vmhost/examples/schema.json") == ""
    assert lab.output("vmhost schema") == lab.output("cat /usr/share/vmhost/schema.json")
    assert lab.output("vmhost check /usr/share/doc/vmhost/examples/demo; echo $?").endswith("0\n")
    assert lab.output("ls /usr/share/vmhost/dashboards").split() == sorted(written.files())
    assert lab.output("ls /usr/share/bash-completion/completions/vmhost /usr/share/doc/vmhost/copyright") != ""
