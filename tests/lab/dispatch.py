"""Tests that this kernel cannot run, run inside the virtual lab and reported here as if they had run here.

    @pytest.mark.kernel("8021q", "bridge-vlan")       # names of tests/lab/kernel.py; also as pytestmark of a module
    def test_frames() -> None: ...

Where this kernel has all of it, the test runs here, unless --in-lab is given. Else it is sent into the virtual lab,
with all others of the session in one go by one pytest. Those tests, and those that use the fixture `virtual_lab`, run
last: the machine disturbs no others, and is booted once.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.lab.booted import Booted
from tests.lab.kernel import TRIALS, lacking
from tests.lab.payload import ROOT
from tests.lab.sent import Sent
from tests.lab.service import Service
from tests.lab.virtual import VirtualLab
from tests.patience import IN_LAB

BUILD = ROOT / "build"
PATIENCE = 10
"""Of those who wait outside for what an emulated CPU does, on a machine that may be busy itself."""

OUTSIDE_TIMEOUT_S = 1800
"""Of a test that drives the machine and says no other: the first one boots it and installs the package."""

BOOTED = pytest.StashKey[Booted]()
_sent = pytest.StashKey[Sent]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--in-lab", action="store_true", help="run every test marked `kernel` inside the virtual lab")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel(*features): needs these of the kernel; run in the virtual lab without")
    config.addinivalue_line("markers", "virtual: needs the virtual lab, by `kernel` or the fixture `virtual_lab`")
    config.stash[BOOTED] = Booted()
    config.stash[_sent] = Sent(config, config.stash[BOOTED])


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[BOOTED].end()


def features_of(item: pytest.Item) -> list[str]:
    """What a test asks of the kernel, by all its marks; UsageError for a name that nobody knows."""
    wanted = [str(name) for mark in item.iter_markers("kernel") for name in mark.args]
    if unknown := sorted(set(wanted) - set(TRIALS)):
        raise pytest.UsageError(f"{item.nodeid}: nobody knows how to try {', '.join(unknown)}: tests/lab/kernel.py")
    return wanted


def pytest_itemcollected(item: pytest.Item) -> None:
    if features_of(item) or "virtual_lab" in getattr(item, "fixturenames", ()):
        item.add_marker("virtual")
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(OUTSIDE_TIMEOUT_S))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if os.environ.get(IN_LAB):
        return
    last = [item for item in session.items if item.get_closest_marker("virtual")]
    sent = session.config.stash[_sent]
    for item in last:
        features = features_of(item)
        if features and (session.config.getoption("--in-lab") or lacking(features)):
            sent.add(item)
            item.add_marker(pytest.mark.timeout(0), append=False)  # inside it has one of its own
    here = [item for item in session.items if item not in set(last)]
    session.items[:] = here + [item for item in last if item not in sent] + [item for item in last if item in sent]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.environ.get(IN_LAB) and (missing := lacking(features_of(item))):
        pytest.fail(f"the virtual lab's kernel lacks {', '.join(missing)} as well", pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    sent = item.config.stash[_sent]
    if item not in sent:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in sent.reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = getattr(item, "funcargs", {}).get("virtual_lab")
    if report.failed and isinstance(lab, VirtualLab):
        report.sections.append(("journal of the virtual lab", lab.journal()))
    return report


@pytest.fixture(scope="session")
def virtual_lab(request: pytest.FixtureRequest) -> VirtualLab:
    """The virtual lab's machine, to be driven from outside; all tests of the session share it."""
    return request.config.stash[BOOTED].lab()


@pytest.fixture(scope="session")
def virtual_service(virtual_lab: VirtualLab, package: Path) -> Service:
    """The package installed in the virtual lab, its agent a service of the systemd there; no unit file is there yet."""
    service = Service(virtual_lab, patience=PATIENCE)
    service.install(package)
    service.wait_settled()
    return service


@pytest.fixture(scope="session")
def package() -> Path:
    """The package as `make deb` built it."""
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
    found = sorted(BUILD.glob(f"vmhost_*_{architecture.strip()}.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        pytest.fail("build/vmhost_*.deb is missing: run `make deb` first", pytrace=False)
    return found[-1]
