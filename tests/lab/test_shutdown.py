"""The host shuts down: guests are stopped in order, each within its time, and one that does not obey hangs nobody."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import Lab
from tests.lab.service import Installed
from tests.lab.tree import debian_tree

pytestmark = pytest.mark.timeout(300)  # a lab of its own, which ends

STUBBORN_S = 4
GUEST = """
[vm.{name}]
memory = "128M"
accel = "tcg"
kernel = "/var/cache/vmhost/demo/vmlinuz"
initrd = "/var/cache/vmhost/demo/initramfs.img"
append = "console=ttyS0 quiet init_on_alloc=0 panic=-1 {append}"
after = [{after}]
restart = "always"
stop-timeout = "{timeout_s}s"
"""
GUESTS = {  # each goes after the one before it; the middle one does not hear
    "a": GUEST.format(name="a", append="", after="", timeout_s=60),
    "b": GUEST.format(name="b", append="vmhost.acpi=ignore", after='"vm:a"', timeout_s=STUBBORN_S),
    "c": GUEST.format(name="c", append="", after='"vm:b"', timeout_s=60),
}


@pytest.fixture
def own_lab(lab_folder: Path, package: Path, guest_kernel: Path, guest_initrd: Path) -> Iterator[Installed]:
    """A lab that is shut down: with three guests that have booted."""
    folder = Path(tempfile.mkdtemp(dir=lab_folder))
    lab = Lab(debian_tree(), folder)
    try:
        lab.boot()
        service = Installed(lab)
        service.install(package)
        for file in (guest_kernel, guest_initrd):
            lab.copy_in(file, f"/var/cache/vmhost/demo/{file.name}")
        for name, text in GUESTS.items():
            lab.write(f"/etc/vmhost.d/{name}.toml", text.encode())
        lab.output("vmhost wait settled --timeout 60", timeout_s=70)
        for name in GUESTS:
            ready = f"echo | timeout 5 vmhost console {name} --quiet-for 0.5"
            lab.wait_until(lambda ready=ready: "#" in lab.output(ready, check=False), f"{name} to boot", 60)  # type: ignore[misc]
        yield service
    finally:
        lab.kill()


def stops(events: list[str]) -> dict[str, float]:
    """Which guests were shut down, in which order, and how long each took, in seconds."""
    pattern = r"shut ([abc]) down within [0-9]+ s \(host-down\): done in ([0-9.]+) ms"
    found = [match for text in events if (match := re.fullmatch(pattern, text))]
    return {match[1]: float(match[2]) / 1000 for match in found}


def test_guests_stop_in_reverse_order_at_poweroff(own_lab: Installed) -> None:
    lab = own_lab.lab
    lab.output("systemctl is-active vmhost-guests.service")
    # What the agent knows when guests are down, in a file that outlives the lab.
    last_words = b"[Service]\nExecStop=/bin/sh -c 'vmhost events --json >/var/cache/vmhost/events'\n"
    lab.write("/run/systemd/system/vmhost-guests.service.d/test.conf", last_words)
    lab.output("systemctl daemon-reload")
    began_s = time.monotonic()
    lab.output("systemctl poweroff", check=False)
    lab.wait_until(lab.has_ended, "the lab to be off", 60)
    took_s = time.monotonic() - began_s
    events = [json.loads(line)["message"] for line in lab.left("var/cache/vmhost/events").read_text().splitlines()]
    found = stops(events)
    print(f"poweroff took {took_s:.1f} s, guests {found}")
    assert list(found) == ["c", "b", "a"]
    assert STUBBORN_S <= found["b"] < STUBBORN_S + 15
    assert max(found["a"], found["c"]) < 15  # they heard the power button: their deadline is at 60 s
    first_stop = next(number for number, text in enumerate(events) if text.startswith("shut c down"))
    assert not [text for text in events[first_stop:] if text.startswith("launch QEMU")]
    assert took_s < STUBBORN_S + 20


def test_down_keeps_guests_off_over_an_agents_restart_until_up(own_lab: Installed) -> None:
    lab = own_lab.lab
    lab.output("vmhost down", timeout_s=60)
    assert own_lab.status()["agent"]["settled"]
    assert {vm["pid"] for vm in own_lab.status()["vms"]} == {None}
    lab.output("systemctl restart vmhost-agent")
    own_lab.wait_settled()
    assert {vm["pid"] for vm in own_lab.status()["vms"]} == {None}
    assert "no guest starts before `vmhost up`" in lab.output("vmhost why a")
    lab.output("vmhost up", timeout_s=60)
    assert set(own_lab.pids()) == set(GUESTS)
