"""The page on edits, from the planner's own table of keys: what editing each does to a guest that runs.

`python -m docs.effects > docs/edits.md` writes it; a test says when it is stale.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

from agent.core.edits.effects import EFFECTS, PLUGGING

TABLES = {
    "bridge": "bridge.NAME",
    "host-vlan": "bridge.NAME.vlan.ID",
    "vlan": "vlan.NAME",
    "vm": "vm.NAME",
    "disk": "vm.NAME.disk.ID",
    "cdrom": 'vm.NAME.disk.ID, where media = "cdrom"',
    "nic": "vm.NAME.nic.ID",
    "serial": "vm.NAME.serial.ID",
}

MEANINGS = {
    "live": "done at once, in the same QEMU",
    "restart": "pending until the guest's next start; it runs on as it is",
    "replace": "pending as well, and what starts then is another guest",
}

PENDING = (
    "What waits is `pending` in `vmhost status`, and `vmhost plan FILE` says so before the edit is made. It is applied "
    "by a reboot from within the guest, by `vmhost restart NAME`, or at once where the unit says "
    '`apply = "restart"`; taking the edit back clears it.'
)

INTRODUCTION = f"""\
# Edits of a running guest
<!-- Written by `python -m docs.effects > docs/edits.md`. -->

{textwrap.fill(PENDING, 118, break_on_hyphens=False)}

| effect | |
|---|---|
"""

STORIES = """
## Its own reboot
While something waits, QEMU is told to end when its guest reboots (QMP `set-action`), and the agent starts it again at
once as its unit says by then. That is no end: nothing is counted, no backoff, and it is so with `restart = "never"`
too. A poweroff stays one. With nothing waiting a reboot is one of the same QEMU, as ever.

- An agent that ends by itself takes that back first: a guest that reboots meanwhile comes back in the same QEMU, and
  the next agent arms it again. A guest that reboots after its agent was killed is down until the next one comes.
- Whether a guest rebooted or switched itself off while nobody listened is read from a line in its `qemu.log` that
  only a poweroff leaves. Where there is none (a QEMU that an earlier version of the agent started, or one built
  without the `log` trace backend), it is taken to have rebooted, and comes back: one guest too many that runs is
  sooner seen than one too few.
- While a guest is held (`vmhost hold`), or its unit has mistakes, its reboots apply nothing.
- A kernel that panics and reboots (`panic=…`), a watchdog's `reset` and `vmhost reset` are reboots too, and apply
  what waits.

## At once: `apply = "restart"`
The default is `apply = "ask"`. With `"restart"` the guest is shut down, within its `stop-timeout`, and started again
as soon as its edit needs that; `vmhost plan` shows it with the disruption `restart`. It counts as a stop that a unit
asked for: more than `--max-disruption` of them within a minute wait for `vmhost approve ID`. An MTU that the guest was
not told of yet, perhaps its bridge's, restarts nobody.

## What QEMU refuses
A guest that QEMU refuses to start as its unit was edited is started as it last ran: it is tried twice, in case the
cause was of the moment, and is back within seconds. It is `FellBack` then, in QEMU's words, and `status --json` has
both digests, of what runs (`digest`) and of what its unit says (`digest_wanted`). An edit of the unit, or
`vmhost restart NAME`, has it tried again.

Only QEMU's own refusal counts here; what is missing is told before anything ends (below). A bridge, and what a guest
needs that does not run, are waited for as ever. What last ran is kept in the state directory (`ran/UUID.toml`) and is
what the guest was told to run with (`cont`), so one that its own kernel does not boot is not noticed.
`fallback = false` leaves it off and tries on.

## What could not be started
An edit may ask for a disk that is not there (and is not created: no `size`, no folder, or it was there before), for a
`kernel` or `initrd` that is not there, or for more memory than the host would have with the guest's own given back.
Nobody asked for an outage until somebody notices, so the running guest is kept: the edit is `EditUnstartable` beside
what is `pending`, a reboot from within the guest stays one of the same QEMU, `apply = "restart"` waits, and
`vmhost restart NAME` is refused with exit code 1. Only what the guest does not run with already counts.

It clears by itself: files are looked at each second, memory every five. What is not known yet, as on a storage that
hangs, is waited for in the same way. `vmhost stop NAME` and `start NAME` apply the edit anyway, and the guest waits
then, as any that is started. A guest whose QEMU crashes meanwhile is started as it last ran (`FellBack` until it does,
then `EditUnstartable` again), unless `fallback = false`.
"""


def page() -> str:
    """The page as Markdown."""
    effects = "\n".join(f"| `{name}` | {text} |" for name, text in MEANINGS.items())
    return "\n".join([f"{INTRODUCTION}{effects}", *_tables(), STORIES])


def _tables() -> Iterator[str]:
    for table, name in TABLES.items():
        yield f"\n## `[{name}]`\n"
        if table in PLUGGING:
            yield f"A whole table that is added or removed: {PLUGGING[table]}.\n"
        yield "| key | effect | what becomes of the guest |"
        yield "|---|---|---|"
        for key, one in EFFECTS[table].items():
            yield f"| `{key}` | {one.effect} | {one.says} |"


if __name__ == "__main__":
    sys.stdout.write(page())
