"""One lab for all tests of this folder, with the package installed in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import Lab
from tests.lab.service import Installed
from tests.lab.tree import debian_tree


@pytest.fixture(scope="session")
def lab_folder() -> Iterator[Path]:
    """A folder for what labs write; an overlay wants a file system that is no overlay itself."""
    folder = Path(tempfile.mkdtemp(prefix="vmhost-lab-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def lab(lab_folder: Path) -> Iterator[Lab]:
    """A booted Debian with systemd, without the package."""
    folder = lab_folder / "lab"
    folder.mkdir()
    machine = Lab(debian_tree(), folder)
    try:
        machine.boot()
        yield machine
    finally:
        machine.kill()


@pytest.fixture(scope="session")
def installed(lab: Lab, package: Path, guest_kernel: Path, guest_initrd: Path) -> Installed:
    """The lab with the package installed and the guests of units/demo running."""
    service = Installed(lab)
    service.install(package)
    for file in (guest_kernel, guest_initrd):
        lab.copy_in(file, f"/var/cache/vmhost/demo/{file.name}")
    lab.output("cp /usr/share/doc/vmhost/examples/demo/*.toml /etc/vmhost.d/")
    lab.output("vmhost wait settled --timeout 60", timeout_s=70)
    service.wait_for_guest()
    return service


@pytest.fixture(autouse=True)
def journal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Show what the agent and systemd said, when a test fails."""
    yield
    if "installed" in request.fixturenames and "installed" in request.node.funcargs:
        service: Installed = request.node.funcargs["installed"]
        text = service.lab.output("journalctl --no-pager -o short-precise -n 150", check=False)
        request.node.add_report_section("teardown", "journal of the lab", text)
