"""The service manager, as far as guests need it: transient services over D-Bus (org.freedesktop.systemd1(5)).

Wraps dbus-fast. Made by `ServiceManager.find`, connected when it is first asked, and again after the bus went away. The
manager keeps how a unit's main process ended until `clear`, whatever becomes of this agent meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusFastError

from agent.core.errors import PermanentError, TransientError
from agent.core.guest_unit import Property
from agent.core.reach import AddressFilter

DESTINATION = "org.freedesktop.systemd1"
MANAGER = "/org/freedesktop/systemd1"
UNIT_INTERFACE, SERVICE_INTERFACE = f"{DESTINATION}.Unit", f"{DESTINATION}.Service"
BOOTED = Path("/run/systemd/system")
"""There if systemd is this host's process 1 (sd_booted(3))."""

ANSWER_TIMEOUT_S = 20.0
END_TIMEOUT_S = 5.0
CLEAR_TIMEOUT_S = 1.0
_CLD_EXITED = 1
"""waitid(2): `ExecMainCode` of a process that exited; all others were ended by a signal."""
_CODES_OF_SYSTEMD = range(200, 244)
"""With these a process exits that systemd made and that could not become the command."""


class UnitExistsError(PermanentError):
    """There is a unit of this name already."""


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """A service's main process: its pid, and once it has ended, its exit code or the signal, and systemd's verdict."""

    state: str
    pid: int
    has_ended: bool
    code: int | None
    signal: int | None
    result: str

    @property
    def runs(self) -> bool:
        """Whether something of it runs, or is about to."""
        return not self.has_ended and self.state not in {"inactive", "failed"}

    @property
    def was_executed(self) -> bool:
        """Whether its command ended by itself. Systemd calls the start of one failed whose end it hears of before it
        hears that it was executed, so the verdict of the start does not tell; what ends before that, systemd ends with
        a code of its own (systemd.exec(5), Process Exit Codes)."""
        return self.has_ended and self.code not in _CODES_OF_SYSTEMD


def runs_as_service(environment: Mapping[str, str]) -> bool:
    """Whether this process was started by the service manager of this host as a unit's own process (systemd.exec(5),
    $SYSTEMD_EXEC_PID), so that it may have units of its own beside it."""
    return BOOTED.is_dir() and environment.get("SYSTEMD_EXEC_PID") == str(os.getpid())


class ServiceManager:
    """All methods raise TransientError `ServiceManagerSilent` if nobody answers in time; what was asked for may have
    been done all the same."""

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._connecting = asyncio.Lock()
        self._signals: set[asyncio.Queue[Message]] = set()

    async def start(self, unit: str, properties: Sequence[Property], descriptors: Mapping[str, int]) -> None:
        """Start a transient service; returns when its command was executed, with Type=exec; it may have ended since.

        `descriptors`: by the name of the property that takes one, as StandardInputFileDescriptor; the caller keeps its
        own. UnitExistsError if there is one of that name; TransientError `LaunchFailed` if it could not be executed.
        """
        fds = list(descriptors.values())
        all_properties = [[name, Variant(signature, value)] for name, signature, value in properties]
        all_properties += [[name, Variant("h", index)] for index, name in enumerate(descriptors)]
        async with self._hearing("JobRemoved") as signals:
            job = await self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", [unit, "fail", all_properties, []], fds)
            result = await _job_result(signals, job)
        if result != "done":
            status = await self.status(unit)
            if status is not None and status.was_executed:
                return
            why = f"{status.result}, status {status.code or status.signal}" if status is not None else result
            raise TransientError(f"systemd cannot run {unit}: {why}; see journalctl -u {unit}", reason="LaunchFailed")

    async def status(self, unit: str) -> UnitStatus | None:
        """How a service is, None if the manager knows nothing of it."""
        try:
            path = await self._call("GetUnit", "s", [unit])
        except PermanentError:
            return None
        return await self._status(path)

    async def address_filter(self, unit: str) -> AddressFilter:
        """Which addresses a service admits, as the manager has it now (`IPAddressDeny`, `IPAddressAllow`: a(iayu))."""
        path = await self._call("GetUnit", "s", [unit])
        lists = [await self._property(path, SERVICE_INTERFACE, f"IPAddress{kind}") for kind in ("Deny", "Allow")]
        deny, allow = ([f"{ip_address(bytes(one))}/{bits}" for _, one, bits in found or ()] for found in lists)
        return AddressFilter(deny, allow)

    async def wait_end(self, unit: str, timeout_s: float = END_TIMEOUT_S) -> UnitStatus | None:
        """How a service whose main process is gone ended: the manager notices a moment after its parting. None if it
        knows nothing of it, or has not noticed within `timeout_s`."""
        with contextlib.suppress(PermanentError, TimeoutError):
            async with asyncio.timeout(timeout_s), self._hearing("PropertiesChanged") as signals:
                path = await self._call("GetUnit", "s", [unit])
                while not (status := await self._status(path)).has_ended:
                    while (await signals.get()).path != path:
                        pass
                return status
        return None

    async def kill(self, unit: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the main process of a service a signal; nothing happens if it has ended, or is not there."""
        with contextlib.suppress(PermanentError):
            await self._call("KillUnit", "ssi", [unit, "main", number.value])

    async def properties(self, unit: str, names: Sequence[str]) -> Mapping[str, Any] | None:
        """Properties of a service, None if the manager knows nothing of it."""
        try:
            path = await self._call("GetUnit", "s", [unit])
            values = await asyncio.gather(*(self._property(path, SERVICE_INTERFACE, name) for name in names))
        except PermanentError:
            return None
        return dict(zip(names, values, strict=True))

    async def default(self, name: str) -> Any:
        """A property of the manager itself, as a default that units have."""
        return await self._property(MANAGER, f"{DESTINATION}.Manager", name)

    async def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Set properties of a unit that runs, until it ends; PermanentError if there is none, or it takes them not."""
        values = [[name, Variant(signature, value)] for name, signature, value in properties]
        await self._call("SetUnitProperties", "sba(sv)", [unit, True, values])

    async def clear(self, unit: str) -> None:
        """Have the manager forget a service that has ended; one that runs, or is not there, is left as it is.

        While the host shuts down it is forgotten later: its end waits for that of `vmhost-guests.service`, which waits
        for us.
        """
        status = await self.status(unit)
        if status is None or status.runs:
            return
        with contextlib.suppress(PermanentError):  # gone meanwhile
            async with self._hearing("JobRemoved") as signals:
                job = await self._call("StopUnit", "ss", [unit, "replace"])
                with contextlib.suppress(TransientError):
                    await _job_result(signals, job, CLEAR_TIMEOUT_S)
            await self._call("ResetFailedUnit", "s", [unit])

    async def start_timer(self, name: str, timer: Sequence[Property], service: Sequence[Property]) -> None:
        """Start a transient timer with the service of its name. Raises ActionError, also if it did not start."""
        main, beside = ([[key, Variant(sort, value)] for key, sort, value in given] for given in (timer, service))
        async with self._hearing("JobRemoved") as signals:
            body: list[object] = [f"{name}.timer", "replace", main, [[f"{name}.service", beside]]]
            job = await self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
            result = await _job_result(signals, job)
        if result != "done":
            raise TransientError(f"systemd cannot start {name}.timer: {result}", reason="LaunchFailed")

    async def stop_timer(self, name: str) -> None:
        """Stop such a timer; nothing happens if there is none. TransientError if systemd does not answer."""
        with contextlib.suppress(PermanentError):
            async with self._hearing("JobRemoved") as signals:
                job = await self._call("StopUnit", "ss", [f"{name}.timer", "replace"])
                await _job_result(signals, job)

    async def let_go(self, unit: str) -> None:
        """Have the manager forget a service of `AddRef` once it has ended; never fails. Without this it does so when
        the connection closes."""
        with contextlib.suppress(PermanentError, TransientError):
            await self._call("UnrefUnit", "s", [unit])

    def close(self) -> None:
        """Close the connection; units run on."""
        if self._bus is not None:
            self._bus.disconnect()
            self._bus = None

    async def _status(self, path: str) -> UnitStatus:
        get = [
            self._property(path, UNIT_INTERFACE, "ActiveState"),
            *(
                self._property(path, SERVICE_INTERFACE, name)
                for name in ("ExecMainPID", "ExecMainCode", "ExecMainStatus", "Result")
            ),
        ]
        state, pid, code, number, result = await asyncio.gather(*get)
        exited = code == _CLD_EXITED
        return UnitStatus(
            state=str(state),
            pid=int(pid),
            has_ended=code != 0,
            code=int(number) if exited else None,
            signal=int(number) if code != 0 and not exited else None,
            result=str(result),
        )

    async def _property(self, path: str, interface: str, name: str) -> Any:
        """A property of a unit, of whatever type that has."""
        answer = await self._send(path, "org.freedesktop.DBus.Properties", "Get", "ss", [interface, name])
        return answer.value if isinstance(answer, Variant) else None

    async def _call(self, member: str, signature: str, body: list[object], fds: Sequence[int] = ()) -> str:
        return str(await self._send(MANAGER, f"{DESTINATION}.Manager", member, signature, body, fds))

    async def _send(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: list[object],
        fds: Sequence[int] = (),
        destination: str = DESTINATION,
    ) -> object:
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
            unix_fds=list(fds),
        )
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                bus = await self._connected()
                answer = await bus.call(message)
        except (TimeoutError, DBusFastError, OSError, EOFError) as error:
            why = f"{member}: systemd does not answer over D-Bus ({str(error) or 'no answer'})"
            raise TransientError(why, reason="ServiceManagerSilent") from error
        if answer.message_type is MessageType.ERROR:
            why = f"{member}: {answer.body[0] if answer.body else answer.error_name}"
            kind = UnitExistsError if answer.error_name == f"{DESTINATION}.UnitExists" else PermanentError
            raise kind(why, reason="ServiceManagerRefused")
        return answer.body[0] if answer.body else None

    async def _connected(self) -> MessageBus:
        async with self._connecting:
            if self._bus is None or not self._bus.connected:
                bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
                bus.add_message_handler(self._heard)
                # Signals of units come only to whoever subscribed (org.freedesktop.systemd1(5), Subscribe).
                await bus.call(_to_manager("Subscribe"))
                self._bus = bus
            return self._bus

    def _heard(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL:
            for queue in self._signals:
                queue.put_nowait(message)

    @contextlib.asynccontextmanager
    async def _hearing(self, member: str) -> AsyncIterator[asyncio.Queue[Message]]:
        """Inside, the manager's signals of one kind, from before the first thing that is asked."""
        queue: asyncio.Queue[Message] = asyncio.Queue()
        rule = f"type='signal',sender='{DESTINATION}',member='{member}',path_namespace='{MANAGER}'"
        self._signals.add(queue)
        try:
            await self._match("AddMatch", rule)
            yield queue
        finally:
            self._signals.discard(queue)
            with contextlib.suppress(TransientError, PermanentError):
                await self._match("RemoveMatch", rule)

    async def _match(self, member: str, rule: str) -> None:
        bus = "org.freedesktop.DBus"
        await self._send("/org/freedesktop/DBus", bus, member, "s", [rule], destination=bus)


def _to_manager(member: str) -> Message:
    return Message(destination=DESTINATION, path=MANAGER, interface=f"{DESTINATION}.Manager", member=member)


async def _job_result(signals: asyncio.Queue[Message], job: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
    """How a job ended: JobRemoved carries its number, its path, its unit and its result."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await signals.get()
                if message.member == "JobRemoved" and message.body[1] == job:
                    return str(message.body[3])
    except TimeoutError as error:
        raise TransientError(f"systemd does not finish {job}", reason="ServiceManagerSilent") from error
