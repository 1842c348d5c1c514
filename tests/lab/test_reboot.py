"""A host that crashes, and boots again: its guests come back by their units, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import Lab
from tests.lab.service import Installed
from tests.lab.tree import debian_tree

pytestmark = pytest.mark.timeout(600)  # it boots a lab of its own, twice


@pytest.fixture
def crashing(lab_folder: Path, package: Path, guest_kernel: Path, guest_initrd: Path) -> Iterator[Installed]:
    """A lab of its own with the guests of units/demo."""
    folder = lab_folder / "crashing"
    folder.mkdir()
    machine = Lab(debian_tree(), folder)
    try:
        machine.boot()
        service = Installed(machine)
        service.install(package)
        for file in (guest_kernel, guest_initrd):
            machine.copy_in(file, f"/var/cache/vmhost/demo/{file.name}")
        machine.output("cp /usr/share/doc/vmhost/examples/demo/*.toml /etc/vmhost.d/")
        service.wait_settled()
        yield service
    finally:
        machine.kill()


def test_after_a_crash_of_the_host_guests_start_by_their_units_in_order(crashing: Installed) -> None:
    crashing.wait_for_guest()
    crashing.lab.output("vmhost stop db")
    before = {vm["name"]: (vm["uuid"], vm["state"]) for vm in crashing.status()["vms"]}
    assert before["db"][1] == "stopped"
    crashing.lab.kill()
    crashing.lab.boot()
    crashing.wait_settled()
    assert {vm["name"]: (vm["uuid"], vm["state"]) for vm in crashing.status()["vms"]} == before
    assert crashing.wait_for_guest() != ""

    crashing.lab.output("vmhost start db")
    crashing.lab.kill()
    crashing.lab.boot()
    crashing.wait_settled()
    assert set(crashing.pids()) == {"db", "web"}
    order = [event["resource"] for event in crashing.events() if event["kind"] in {"launch-vm", "release-vm"}]
    assert order.index("vm/web") < order.index("vm/db")
    assert [event["message"] for event in crashing.events() if event["kind"] == "state-rebuilt"] == []
