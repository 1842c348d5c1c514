"""Who may ask the agent, and who may tell it: by the user and the groups of whoever opened the control socket."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.core.allocation import is_guest_uid
from agent.core.defaults import GROUP

MEMBERS = f"only root and group {GROUP} may; use sudo, or join it (`usermod -aG {GROUP} USER`, and log in again)"
"""Whom the agent answers, and how to become one of them."""


class Readers(StrEnum):
    """Who may read beside root: the members of the group, or every user of the host."""

    GROUP = "group"
    EVERYONE = "everyone"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection: its effective user, its group and its supplementary groups."""

    uid: int
    gids: frozenset[int]


def user_shown(uid: int, name: str) -> str:
    """A user for events and refusals; `name` empty where the host knows none."""
    return f"uid {uid} ({name})" if name else f"uid {uid}"


@dataclass(frozen=True, slots=True)
class Rights:
    """Whom the agent serves. `group_gid` None: the host has no group `vmhost`, so only root and the agent's own user.

    `own_uid` is the user that the agent runs as.
    """

    own_uid: int = 0
    group_gid: int | None = None
    readers: Readers = Readers.GROUP

    @property
    def socket_mode(self) -> int:
        """The mode of a socket that belongs to the agent's user and to the group, if there is one.

        It only spares the agent visitors that it would refuse: each request is judged by `refusal` all the same.
        """
        if self.readers is Readers.EVERYONE:
            return 0o666
        return 0o600 if self.group_gid is None else 0o660


def refusal(rights: Rights, peer: Peer, *, changes: bool) -> str | None:
    """Why a peer may not have what it asks for, in a line that says what to do; None if it may.

    `changes`: it asks for more than an answer. A guest's QEMU may nothing at all: what is in it is a stranger's.
    """
    if peer.uid in {0, rights.own_uid}:
        return None
    if is_guest_uid(peer.uid):
        return f"uid {peer.uid} is a guest's: guests may not ask the agent"
    if rights.group_gid is not None and rights.group_gid in peer.gids:
        return None
    if not changes and rights.readers is Readers.EVERYONE:
        return None
    who = f"only root may, as there is no group {GROUP}; use sudo" if rights.group_gid is None else MEMBERS
    return f"uid {peer.uid} may not {'change anything' if changes else 'read this'}: {who}"
