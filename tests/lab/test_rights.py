"""Users of an installed host: the group that the package makes, and who is in none."""

from __future__ import annotations

import pytest

from tests.lab.service import Installed

pytestmark = pytest.mark.timeout(300)  # the first one boots the lab and its guests

MEMBERS = "only root and group vmhost may; use sudo, or join it (`usermod -aG vmhost USER`, and log in again)"


def test_the_group_of_the_package_asks_and_tells_and_others_do_not(installed: Installed) -> None:
    lab = installed.lab
    assert lab.output("stat --format=%a:%U:%G /run/vmhost/agent.sock").strip() == "660:root:vmhost"
    lab.output("useradd --no-create-home alice && usermod -aG vmhost alice && useradd --no-create-home bob")
    assert "web" in lab.output("setpriv --reuid=alice --regid=alice --init-groups vmhost status")
    assert "under way" in lab.output("setpriv --reuid=alice --regid=alice --init-groups vmhost start web --no-wait")
    for words in ("status", "stop web"):
        refused = f"setpriv --reuid=bob --regid=bob --init-groups vmhost {words} 2>&1; echo exit $?"
        said = lab.output(refused)
        assert said == f"vmhost: /run/vmhost/agent.sock: permission denied: {MEMBERS}\nexit 1\n"
