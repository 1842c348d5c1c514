"""The agent's side of the control socket with made-up facts; run as a program it serves until its stdin ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from agent.core.conditions import Condition
from agent.core.desired import BridgeSpec, Desired, NicSpec, VmSpec
from agent.core.doctor.diagnosis import Diagnosis
from agent.core.measures import GuestMeasure
from agent.core.observed import LinkState, NicBackend, NicState, Observed, VmState
from agent.core.rights import Rights
from agent.core.tell.forecast import forecast, forecast_json
from agent.core.tell.looks import GuestLook, NicCount
from agent.core.tell.show import show_json
from agent.core.tell.status import AgentFacts, StatusInputs, status
from agent.runtime.control import RefusedError, UnknownNameError, Verb, WaitFor, WaitResult, serve_control
from agent.telemetry.journal import Event, Journal, set_up_logging

NIC = NicSpec("lan", "br-lan", "02:00:00:00:00:01", "web-lan", 0)
WEB = VmSpec("web", "u-web", 1900000000, file="/u/web.toml", nics=(NIC,))
DB = VmSpec("db", "u-db", 1900000001, file="/u/db.toml")


class FakeAgent:
    """Serves a host with the guests `web` (runs) and `db` (waits); notes what it was asked."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.journal.record("vm/web", "launched", "launched web", pid=42)
        self.asked: list[tuple[str, ...]] = []
        self.planned: Mapping[str, bytes | None] = {}
        self.waits_cancelled = 0
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()

    def status(self) -> Mapping[str, object]:
        links = {
            "br-lan": LinkState(2, "br-lan", "bridge", up=True),
            "web-lan": LinkState(3, "web-lan", "tun", up=True, master=2),
        }
        nics = {"lan": NicState(NicBackend.ATTACHED, "web-lan")}
        web = VmState(WEB, alive=True, pid=42, run_state="running", nics=nics)
        missing = Condition("vm/db/disk/root", "DiskMissing", "DiskMissing", "/d/db.qcow2 is gone; put it back")
        bridge = BridgeSpec("br-lan", "02:00:00:00:00:02", file="/u/net.toml", addresses=("10.0.0.1/24",))
        return status(
            StatusInputs(
                AgentFacts("0.1.0", 7, "2026-01-01T00:00:00Z", settled=True),
                desired=Desired({"br-lan": bridge}, {"web": WEB, "db": DB}),
                observed=Observed(links=links, vms={"web": web}),
                conditions=[(missing, "2026-01-01T00:00:05Z")],
            )
        )

    async def events(self, since: int, *, follow: bool) -> AsyncIterator[Event]:
        for event in self.journal.since(since):
            yield event
            since = event.seq
        if follow:
            async for event in self.journal.follow(since):
                yield event

    async def wait(self, what: WaitFor, name: str | None, timeout_s: float | None) -> WaitResult:
        if what == "settled" or name == "web":
            return WaitResult(True, "vm web is running" if name else "settled")
        self.waiting.set()
        try:
            await asyncio.sleep(3600 if timeout_s is None else timeout_s)
        except asyncio.CancelledError:
            self.waits_cancelled += 1
            self.cancelled.set()
            raise
        return WaitResult(False, f"vm {name} is waiting: DiskMissing")

    async def intent(self, verb: Verb, name: str, by: str) -> str:
        if name not in {"web", "db"}:
            raise UnknownNameError("guest", name, ["web", "db"])
        self.asked.append((verb, name, by))
        return f"{verb} of {name} noted"

    async def approve(self, identity: str, by: str) -> str:
        if identity != "ab12":
            raise RefusedError(f"nothing asks for an approval {identity}; `vmhost status` shows what does")
        self.asked.append(("approve", identity, by))
        return "3 guests may stop"

    def moves(self) -> Mapping[str, object]:
        return {"moves": []}

    async def confirm(self, bridge: str | None, by: str) -> str:
        if bridge is None:
            raise RefusedError("no move waits for a word; `vmhost move` shows how moves stand")
        self.asked.append(("confirm", bridge, by))
        return f"{bridge} keeps what it carries"

    async def hold(self, name: str, uid: int, reason: str, by: str) -> str:
        self.asked.append(("hold", name, str(uid), reason, by))
        return f"{name} is held"

    async def set_down(self, by: str, *, down: bool, budget_s: float | None = None) -> str:
        self.asked.append(("down" if down else "up", "" if budget_s is None else f"{budget_s:g}", by))
        return "noted"

    async def plan(self, files: Mapping[str, bytes | None]) -> Mapping[str, object]:
        self.planned = files
        found = forecast(Desired({"br-lan": BridgeSpec("br-lan", "02:00:00:00:00:02")}), Observed(), 0.0)
        units = [{"file": f"/u/{name}", "state": "valid", "errors": []} for name in files]
        return {**forecast_json(found), "units": units}

    async def why(self, name: str) -> Mapping[str, object]:
        if name != "web":
            raise UnknownNameError("guest and no bridge", name, ["web", "db"])
        return {"found": [{"resource": "vm/web", "reasons": [{"topic": "next", "text": "nothing"}]}]}

    async def show(self, name: str) -> Mapping[str, object]:
        return {"found": [show_json("vm", name, (), Desired({}, {"web": WEB}), Observed())]}

    async def doctor(self) -> Mapping[str, object]:
        return Diagnosis().as_json()

    async def measures(self, max_age_s: float) -> str:
        measure = GuestMeasure("web", max_age_s, {"user": 1.0, "system": 0.5})
        look = GuestLook("web", "running", 42, measure, (NicCount("lan", 7, 9),), 1.0)
        return json.dumps({"guests": [look.as_json()]})


async def main(run_dir: Path) -> None:
    """Serve, and say on stdout when it is ready."""
    set_up_logging()
    async with serve_control(run_dir / "agent.sock", FakeAgent(), Rights()):
        print("ready", flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1])))
