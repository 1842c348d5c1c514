"""Who may ask and tell the agent, and what the others are told."""

from __future__ import annotations

import pytest

from agent.core.rights import Peer, Readers, Rights, refusal

ROOT, MEMBER, STRANGER = Peer(0, frozenset({0})), Peer(1000, frozenset({1000, 990})), Peer(1001, frozenset({1001}))
GUEST = Peer(1_900_000_003, frozenset({1_900_000_003}))
GROUP, NO_GROUP = Rights(group_gid=990), Rights()
OPEN = Rights(group_gid=990, readers=Readers.EVERYONE)
JOIN = "only root and group vmhost may; use sudo, or join it (`usermod -aG vmhost USER`, and log in again)"
SUDO = "only root may, as there is no group vmhost; use sudo"


@pytest.mark.parametrize(
    ("rights", "peer", "read", "change"),
    [
        (GROUP, ROOT, None, None),
        (GROUP, MEMBER, None, None),
        (GROUP, STRANGER, f"uid 1001 may not read this: {JOIN}", f"uid 1001 may not change anything: {JOIN}"),
        (OPEN, STRANGER, None, f"uid 1001 may not change anything: {JOIN}"),
        (OPEN, MEMBER, None, None),
        (OPEN, GUEST, *["uid 1900000003 is a guest's: guests may not ask the agent"] * 2),
        (
            Rights(group_gid=1_900_000_003),
            GUEST,
            *["uid 1900000003 is a guest's: guests may not ask the agent"] * 2,
        ),
        (NO_GROUP, ROOT, None, None),
        (NO_GROUP, MEMBER, f"uid 1000 may not read this: {SUDO}", f"uid 1000 may not change anything: {SUDO}"),
        (Rights(readers=Readers.EVERYONE), MEMBER, None, f"uid 1000 may not change anything: {SUDO}"),
        (Rights(own_uid=1001), STRANGER, None, None),
        (Rights(own_uid=1001), ROOT, None, None),
    ],
)
def test_who_may_what(rights: Rights, peer: Peer, read: str | None, change: str | None) -> None:
    assert refusal(rights, peer, changes=False) == read
    assert refusal(rights, peer, changes=True) == change


@pytest.mark.parametrize(
    ("rights", "mode"), [(NO_GROUP, 0o600), (GROUP, 0o660), (OPEN, 0o666), (Rights(readers=Readers.EVERYONE), 0o666)]
)
def test_the_socket_lets_in_whom_the_agent_answers(rights: Rights, mode: int) -> None:
    assert rights.socket_mode == mode
