"""Users of an installed host: the group that the package makes, and who is in none."""

from __future__ import annotations

import pytest

from tests.lab.service import Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

MEMBERS = "only root and group vmhost may; use sudo, or join it (`usermod -aG vmhost USER`, and log in again)"
SOCKET_REFUSED = f"vmhost: /run/vmhost/agent.sock: permission denied: {MEMBERS}\n"
ASKED_OF_THE_AGENT = ("status", "plan", "why web", "wait settled", "stop web", "approve 1", "down")
ROOT_ONLY = {
    "console web": "/run/vmhost/vms/web/console.sock",
    "vnc web": "/run/vmhost/vms/web/launch.toml",
    "history": "/var/lib/vmhost/history",
    "init other": "/etc/vmhost.d/other.toml",
}


@pytest.fixture(scope="module")
def users(installed: Installed) -> dict[str, str]:
    """How to be each kind of user: a member of the group, one of no group, a guest's."""
    installed.lab.output("useradd --no-create-home alice && usermod -aG vmhost alice && useradd --no-create-home bob")
    web = installed.lab.output(f"ps -o uid= -p {installed.pids()['web']}").strip()
    return {
        "alice": "setpriv --reuid=alice --regid=alice --init-groups",
        "bob": "setpriv --reuid=bob --regid=bob --init-groups",
        "web": f"setpriv --reuid={web} --regid={web} --clear-groups",
    }


def test_the_group_of_the_package_asks_and_tells(installed: Installed, users: dict[str, str]) -> None:
    lab = installed.lab
    assert lab.output("stat --format=%a:%U:%G /run/vmhost/agent.sock").strip() == "660:root:vmhost"
    assert "web" in lab.output(f"{users['alice']} vmhost status")
    assert "under way" in lab.output(f"{users['alice']} vmhost start web --no-wait")


def test_others_are_refused_in_one_line_and_nothing_is_done(installed: Installed, users: dict[str, str]) -> None:
    """docs/security.md: one line that says what to do, and exit code 1."""
    before = installed.pids()
    for user, words in [("bob", ASKED_OF_THE_AGENT), ("web", ASKED_OF_THE_AGENT[:1])]:
        for command in words:
            done = installed.lab.try_run(f"{users[user]} vmhost {command}")
            assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", SOCKET_REFUSED), (user, command)
    assert installed.pids() == before


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_files_and_sockets_are_root_s(installed: Installed, users: dict[str, str], user: str) -> None:
    for command, path in ROOT_ONLY.items():
        done = installed.lab.try_run(f"{users[user]} vmhost {command}")
        refused = f"vmhost: {path}: permission denied; only root may do this, use sudo\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", refused), command
    assert installed.lab.output("ls /etc/vmhost.d").split() == ["db.toml", "network.toml", "web.toml"]
