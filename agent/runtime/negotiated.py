"""What a guest's driver agreed on with its NIC, asked of QEMU where nobody could read it of the tap."""

from __future__ import annotations

from agent.core.desired import NicSpec
from agent.core.qemu.argv import nic_id
from agent.host.qmp import CommandRefusedError
from agent.host.tap import TapSettings, settings_from_virtio
from agent.runtime.guests import Guests


async def negotiated_settings(vm: str, nic: NicSpec, guests: Guests) -> TapSettings:
    """What a running guest's driver agreed on with its NIC, which its tap must have (QMP `x-query-virtio-status`).

    A NIC that is no virtio one has the settings of a new tap. A QEMU that does not know the command (before 7.2) gets
    those of every current driver, without offloads: slower, and right.
    """
    if not nic.model.startswith("virtio-net"):
        return TapSettings()
    path = f"/machine/peripheral/{nic_id(nic.id)}/virtio-backend"
    try:
        answer = await guests.get(vm).execute("x-query-virtio-status", {"path": path})
        features = answer["guest-features"]
        return settings_from_virtio([*features.get("dev-features", ()), *features.get("transports", ())])
    except (CommandRefusedError, KeyError):
        return TapSettings(header_bytes=12)
