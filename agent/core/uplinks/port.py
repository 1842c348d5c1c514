"""The link that an entry of `ports` means: all of the uplinks find it here."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.observed import LinkState


def port_link(links: Mapping[str, LinkState], entry: str) -> LinkState | None:
    """The link of an entry, None while there is none."""
    return links.get(entry)
