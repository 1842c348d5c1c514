"""Gives each action to whoever carries it out."""

from __future__ import annotations

from collections.abc import Callable

from agent.core.actions import (
    Action,
    ChangeAddresses,
    ChangeLink,
    ChangeRate,
    ChangeReboot,
    CreateBridge,
    DeleteLink,
    EndVm,
    EnslavePort,
    LaunchVm,
    LimitVm,
    PauseVm,
    ReleasePort,
    ReleaseVm,
    RenameVm,
    ResetVm,
    ResumeVm,
    StopVm,
)
from agent.core.device_actions import (
    ArmTap,
    CreateDisk,
    GrowDisk,
    PlugDisk,
    PlugNic,
    ReplugNic,
    TakeOver,
    UnplugDisk,
    UnplugNic,
)
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.tuning_actions import ChangeMedium, PlugCpus, TuneVm
from agent.core.vlan_actions import ChangeVlans, CreateVlan
from agent.runtime.execute_devices import DeviceExecutor
from agent.runtime.execute_links import LinkExecutor
from agent.runtime.execute_tuning import TuningExecutor
from agent.runtime.execute_vms import VmExecutor
from agent.runtime.guests import Guests
from agent.runtime.negotiated import negotiated_settings
from agent.runtime.network import Network
from agent.runtime.observe import DiskLooks
from agent.runtime.services import Services


class Executor:
    """Knows the executors of all kinds of actions. `qemu` gives the path of the host's QEMU at the time."""

    def __init__(
        self,
        vms: VmExecutor,
        devices: DeviceExecutor,
        tuning: TuningExecutor,
        links: LinkExecutor,
        services: Services,
        disks: DiskLooks,
        guests: Guests,
        network: Network,
        qemu: Callable[[], str],
    ) -> None:
        self._vms = vms
        self._devices = devices
        self._tuning = tuning
        self._links = links
        self._services = services
        self._disks = disks
        self._guests = guests
        self._network = network
        self._qemu = qemu

    async def execute(self, action: Action) -> None:
        """Do one action; raises what its executor raises."""
        vms = self._vms
        match action:
            case LaunchVm():
                await vms.launch(action, self._qemu())
            case ReleaseVm():
                await vms.release(action.vm)
            case StopVm():
                await vms.stop(action)
            case EndVm():
                await vms.end(action)
            case ResumeVm():
                await vms.resume(action)
            case PauseVm():
                await vms.pause(action.vm)
            case ResetVm():
                await vms.reset(action)
            case LimitVm() | ChangeReboot():
                await vms.change(action)
            case RenameVm():
                await vms.rename(action)
            case _:
                await self._execute_on_devices(action)

    async def _execute_on_devices(self, action: Action) -> None:
        match action:
            case CreateDisk():
                await self._vms.create_disk(action)
                await self._disks.look_now(action.disk)
            case GrowDisk():
                await self._devices.grow(action)
                await self._disks.look_now(action.disk)
            case TakeOver() | PlugNic() | UnplugNic() | ReplugNic() | PlugDisk() | UnplugDisk():
                await self._devices.change(action)
            case TuneVm() | PlugCpus() | ChangeMedium():
                await self._tuning.change(action)
            case ArmTap():
                await self._links.arm(action, lambda arm: negotiated_settings(arm.vm, arm.nic, self._guests))
            case CreateBridge() | ChangeLink() | ChangeAddresses() | EnslavePort() | ReleasePort() | DeleteLink():
                await self._links.change(action)
            case ChangeRate() | ChangeVlans() | CreateVlan():
                await self._links.change(action)
            case StartService():
                await self._services.start(action)
            case ReloadService():
                await self._services.reload(action)
            case StopService():
                await self._services.stop(action)
            case _:
                await self._network.execute(action)
