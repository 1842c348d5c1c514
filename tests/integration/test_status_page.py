"""The status page in a real Chromium, served by a real agent with real guests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.browser import DESK, PHONE, Browser, Tab, chromium
from tests.integration.conftest import BRIDGE, bare_vm
from tests.integration.test_listener import make_certificate

HERE = "http://127.0.0.1:9177"
NIC = '[vm.web.nic.lan]\nbridge = "br-test"\naddress = "10.77.0.10"\n'
HOSTILE = "<img src=x onerror=document.body.remove()>"


@pytest.fixture
def browser(agent: AgentProcess) -> Iterator[Browser]:
    """In the agent's namespace, so that there is nowhere else to go to."""
    assert agent.units.is_dir()
    with chromium() as found:
        yield found


def cell(table: str, key: str, column: str) -> str:
    """An expression: the text of a cell as a person reads it; null without its row."""
    row = f"document.querySelector('#{table} tr[data-key=\"{key}\"]')"
    return f"{row}?.querySelector('td[data-label=\"{column}\"]').innerText"


def shown(tab: Tab, table: str, key: str, column: str) -> str:
    return str(tab.evaluate(cell(table, key, column)))


def opened(browser: Browser, size: tuple[int, int] = DESK) -> Tab:
    """The page, live."""
    tab = browser.tab(size)
    tab.open(f"{HERE}/")
    tab.until("document.getElementById('live').className === 'on'")
    tab.evaluate("window.same = true")
    return tab


def assert_clean(tab: Tab) -> None:
    """Nothing was wrong in the page's eyes, and it spoke to nobody but the agent."""
    assert tab.problems == []
    elsewhere = [url for url in tab.requests if not url.startswith((f"{HERE}/", "data:"))]
    assert elsewhere == []
    assert f"{HERE}/events" in tab.requests
    assert tab.evaluate("window.same") is True, "the page was loaded anew"


def kill(agent: AgentProcess, name: str) -> None:
    os.kill(int(agent.vm(name)["pid"]), signal.SIGKILL)


def test_a_killed_guest_changes_on_screen_and_comes_back(
    agent: AgentProcess, browser: Browser, boot_files: str
) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", boot_files).replace("32M", "256M") + NIC)
    agent.drop("db.toml", bare_vm("db", 'restart = "never"'))
    agent.start()
    tab = opened(browser)
    assert shown(tab, "vms", "web", "State") == "running"
    assert shown(tab, "nics", "web/lan", "Address") == "10.77.0.10"
    assert shown(tab, "nics", "web/lan", "Attached") == "yes"
    assert "settled" in shown(tab, "host", "host", "State")
    kill(agent, "db")
    tab.until(f"{cell('vms', 'db', 'State')} === 'failed'")
    assert shown(tab, "vms", "db", "Up for") == ""
    agent.vmhost("start", "db")
    tab.until(f"{cell('vms', 'db', 'State')} === 'running'")
    kill(agent, "web")
    tab.until(f"{cell('vms', 'web', 'Restarts')} === '1' && {cell('vms', 'web', 'State')} === 'running'")
    tab.until("document.querySelector('#events').innerText.includes('QEMU of web was killed by SIGKILL')")
    assert tab.evaluate("document.querySelectorAll('#events tbody tr').length") <= 50
    assert "2/2 running" in tab.evaluate("document.title")
    assert_clean(tab)


def test_another_agent_is_found_without_a_reload(agent: AgentProcess, browser: Browser) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    tab = opened(browser)
    assert agent.terminate() == 0  # a page that is open does not hold the agent's end up
    tab.until("document.getElementById('live').className === 'lost'")
    assert "No news from the agent since" in tab.text("#live")
    (agent.units / "web.toml").unlink()
    agent.drop("db.toml", bare_vm("db"))
    agent.start()
    tab.until("document.getElementById('live').className === 'on'")
    tab.until(f"{cell('vms', 'db', 'State')} === 'running'")
    assert tab.evaluate("window.same") is True
    refused = [problem for problem in tab.problems if f"{HERE}/events" not in problem]
    assert refused == []


def test_mistakes_are_told_and_hostile_words_are_words(agent: AgentProcess, browser: Browser, boot_files: str) -> None:
    kernel = boot_files.replace("quiet", "root_password=hunter2").replace("vmhost.nic0", "luks=hunter2 vmhost.nic0")
    agent.drop("web.toml", bare_vm("web", kernel).replace("32M", "256M"))
    agent.start()
    tab = opened(browser)
    agent.drop(f"{HOSTILE}.toml", f"[vm.evil]\n'{HOSTILE}' = '<script>alert(1)</script>'\n")
    edited = kernel.replace("hunter2", "hunter3").replace(str(agent.folder / "vmlinuz"), "/nowhere/<b>")
    agent.drop("web.toml", bare_vm("web", f"{edited}cpus = 2\n").replace("32M", "256M"))
    tab.until("document.querySelector('#wrong').innerText.includes('unknown key')")
    tab.until(f"{cell('vms', 'web', 'Pending until its restart')}.includes('cpus')")
    tab.until(f"{cell('vms', 'web', 'Conditions')}.includes('EditUnstartable (FileMissing): ')")
    where = f"{agent.units}/{HOSTILE}.toml:2:1"
    for page in (tab, without_scripts(browser)):
        wrong, vms = page.text("#wrong"), page.text("#vms")
        assert where in wrong
        assert f'unknown key "{HOSTILE}" in [vm.evil]' in wrong
        assert "/nowhere/<b>" in wrong
        assert "cpus: 1 → 2" in vms
        assert "append: changed (`vmhost status` shows the values)" in vms
        assert page.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0
        assert "hunter" not in str(page.evaluate("document.documentElement.outerHTML"))
    assert_clean(tab)


def without_scripts(browser: Browser) -> Tab:
    tab = browser.tab(scripts=False)
    tab.open(f"{HERE}/")
    assert tab.text("#live").startswith("○ As of ") or tab.text("#live").startswith("As of ")
    assert shown(tab, "vms", "web", "State") == "running"
    assert tab.requests == [f"{HERE}/"]
    return tab


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_one_way_only(agent: AgentProcess, browser: Browser, dark: bool) -> None:
    long = "a-guest-with-a-name-that-goes-on-and-on-for-long"
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm(long) + NIC.replace("vm.web", f"vm.{long}"))
    agent.drop(f"{'long' * 50}.toml", "[vm.x]\nmemory = 'much'\n")
    agent.start()
    tab = browser.tab(PHONE)
    tab.resize(PHONE, dark=dark)
    tab.open(f"{HERE}/")
    tab.until("document.getElementById('live').className === 'on'")
    assert tab.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [PHONE[0], PHONE[0]]
    assert tab.evaluate("getComputedStyle(document.querySelector('td')).display") == "grid"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)"
    )
    assert tab.problems == []


def test_users_and_tls_stand_before_the_page(agent: AgentProcess, browser: Browser, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "host")
    users = agent.folder / "users"
    users.write_text(agent.command("hash-password", "kim", stdin="se:cret\n").stdout)
    agent.drop("web.toml", bare_vm("web"))
    flags = ("--listen-tls-cert", certificate, "--listen-tls-key", key, "--listen-users", users)
    agent.start(*map(str, flags))
    url = "https://127.0.0.1:9177/"
    stranger = browser.tab(trusting=True)
    stranger.log_in("kim", "wrong")
    stranger.open(url)
    assert stranger.statuses[url] == 401
    assert "want a user and a password" in stranger.text()
    tab = browser.tab(trusting=True)
    tab.log_in("kim", "se:cret")
    tab.open(url)
    tab.until("document.getElementById('live').className === 'on'")
    assert shown(tab, "vms", "web", "State") == "running"
    assert tab.statuses[f"{url}events"] == 200
