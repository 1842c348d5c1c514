"""The host shuts down: guests are stopped in order, each within its time, and one that does not obey hangs nobody."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.lab.console import GONE, recorded
from tests.lab.machine import Lab
from tests.lab.service import Installed
from tests.lab.tree import debian_tree

pytestmark = pytest.mark.timeout(600)  # a lab of its own, which ends

OBEDIENT_S, STUBBORN_S = 60, 4
BOOT_S = 180
BUTTON = "vmhost guest: power button"  # tests/guest/bin/power-button
OFF = "reboot: Power down"  # Linux, kernel/reboot.c: the last words of a guest that powers itself off
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
    "a": GUEST.format(name="a", append="", after="", timeout_s=OBEDIENT_S),
    "b": GUEST.format(name="b", append="vmhost.acpi=ignore", after='"vm:a"', timeout_s=STUBBORN_S),
    "c": GUEST.format(name="c", append="", after='"vm:b"', timeout_s=OBEDIENT_S),
}


@pytest.fixture(scope="module")
def own_lab(lab_folder: Path, package: Path, guest_kernel: Path, guest_initrd: Path) -> Iterator[Installed]:
    """A lab that is shut down, with three guests."""
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
        service.wait_settled()
        yield service
    finally:
        lab.kill()


def stops(events: list[str]) -> dict[str, float]:
    """Which guests were shut down, in which order, and how long each took, in seconds."""
    pattern = r"shut ([abc]) down within [0-9]+ s \(host-down\): done in ([0-9.]+) ms"
    found = [match for text in events if (match := re.fullmatch(pattern, text))]
    return {match[1]: float(match[2]) / 1000 for match in found}


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


def test_at_poweroff_each_guest_hears_its_power_button_in_reverse_order(own_lab: Installed) -> None:
    """What the guests themselves say, each on its console, and what the agent says of it."""
    lab = own_lab.lab
    lab.output("systemctl is-active vmhost-guests.service")
    # What the agent knows when guests are down, in a file that outlives the lab.
    last_words = b"[Service]\nExecStop=/bin/sh -c 'vmhost events --json >/var/cache/vmhost/events'\n"
    lab.write("/run/systemd/system/vmhost-guests.service.d/test.conf", last_words)
    lab.output("systemctl daemon-reload")
    with recorded(lab, GUESTS) as consoles:
        consoles.wait_for_shells(BOOT_S)  # a guest that boots does not hear its button
        began_s = time.monotonic()
        with lab.start("systemctl poweroff"):
            consoles.read_to_the_end(180)
        lab.wait_until(lab.has_ended, "the lab to be off", 180)
        took_s = time.monotonic() - began_s
    story = [line for line in consoles.lines if any(word in line.text for word in (BUTTON, OFF)) or line.text == GONE]
    print(f"poweroff took {took_s:.1f} s:", *[f"{line.at_s - began_s:.2f} {line.vm} {line.text}" for line in story])
    # One after the other. One that takes its time hears the button again; b, which does not obey, never says it is off.
    assert [vm for vm, _ in groupby(line.vm for line in story)] == ["c", "b", "a"]
    for name in ("c", "a"):
        heard, *again, off, gone = [line for line in story if line.vm == name]
        assert all(BUTTON in line.text for line in (heard, *again))
        assert OFF in off.text
        assert gone.at_s - heard.at_s < OBEDIENT_S
    *heard_by_b, gone = [line for line in story if line.vm == "b"]
    assert heard_by_b
    assert all(BUTTON in line.text for line in heard_by_b)
    assert gone.at_s - heard_by_b[0].at_s < OBEDIENT_S
    events = [json.loads(line)["message"] for line in lab.left("var/cache/vmhost/events").read_text().splitlines()]
    found = stops(events)
    assert list(found) == ["c", "b", "a"]
    assert STUBBORN_S <= found["b"] < OBEDIENT_S
    first_stop = next(number for number, text in enumerate(events) if text.startswith("shut c down"))
    assert not [text for text in events[first_stop:] if text.startswith("launch QEMU")]
    assert took_s < OBEDIENT_S  # nobody waited for who was gone
