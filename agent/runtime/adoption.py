"""How an agent begins: it takes over what an earlier one launched, then what that one wanted.

Identities come from what runs: a state file that was lost is rebuilt from the launch records, and a launch record that
was lost from its process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from agent.core.memory import Memory, with_boot, with_launch, with_port_numbers
from agent.core.text import counted
from agent.host.launches import BrokenLaunch, Launches, LaunchRecord
from agent.host.netlink import Links
from agent.runtime.guests import Guests
from agent.runtime.keeper import Keeper
from agent.runtime.observe import sized_disks
from agent.runtime.rebuild import rebuilt_record
from agent.runtime.threads import run_to_end
from agent.runtime.units import Units
from agent.telemetry.journal import Journal


@dataclass(frozen=True, slots=True)
class Adoption:
    """What takes part in taking over."""

    launches: Launches
    guests: Guests
    units: Units
    keeper: Keeper
    links: Links
    journal: Journal

    async def take_over(self, boot_id: str) -> None:
        """Adopt all guests that run, and go on with the last good versions of the units."""
        self.launches.open()
        found = await run_to_end(self.launches.read)
        running = await self._adopt([one for one in found if isinstance(one, LaunchRecord)])
        is_new = not self.keeper.memory.boot_id
        await self.units.load_last_good()
        if is_new:
            # Never written before, or lost: a disk that a unit names may have existed, so none of them is made anew.
            known = frozenset(disk.path for disk in sized_disks(self.units.desired))
            await self.keeper.update(lambda memory: replace(memory, known_disks=memory.known_disks | known))
        links = self.links.snapshot
        await self.keeper.update(lambda memory: with_port_numbers(with_boot(memory, boot_id), links))
        rebuilt = [self._rebuild(one) for one in found if isinstance(one, BrokenLaunch)]
        running += await self._adopt([record for record in rebuilt if record is not None])
        if running:
            self.journal.record("agent", "adopted", f"adopted {counted(running, 'running guest')}")

    async def _adopt(self, records: Sequence[LaunchRecord]) -> int:
        running = await self.guests.adopt(records)
        states = [guest.state() for guest in self.guests]

        def with_launches(memory: Memory) -> Memory:
            return reduce(with_launch, states, memory)

        await self.keeper.update(with_launches)
        return running

    def _rebuild(self, launch: BrokenLaunch) -> LaunchRecord | None:
        """Make the record of a guest that runs again, which cannot be read."""
        record = None
        if launch.running:
            unit = self.units.desired.vms.get(launch.name)
            record = rebuilt_record(launch.name, unit, self.links.snapshot, self.launches)
        if record is not None:
            self.launches.save(record)
        what = "made again from what runs" if record is not None else "nothing of it runs"
        kept = f", kept as {launch.kept_as}" if launch.kept_as else ""
        message = f"the launch record of {launch.name} cannot be read ({launch.why}){kept}; {what}"
        self.journal.record(f"vm/{launch.name}", "launch-broken", message, level="warning")
        return record
