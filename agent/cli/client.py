"""The agent's control socket as seen by the command: HTTP over AF_UNIX, by the standard library for a quick start."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from agent.core.defaults import SOCKET_NAME
from agent.core.rights import MEMBERS

Json = dict[str, Any]
"""What json.loads gives for an object."""

ANSWER_S = 10.0
"""An agent that has not answered a plain question after this long is taken for hung."""

DOCTOR_S = 60.0
"""Other DHCP servers are waited for, and a thing that was found is looked at twice."""

PLAN_S = 120.0
"""A forecast goes through every action; a long row of guests that start one after another takes its time."""

GRACE_S = 3.0
"""What the agent gets beyond a wait's own timeout to say that it was not true."""

POLL_S = 0.05
"""How often a socket that is not there yet is tried."""


class NoAgentError(Exception):
    """Nobody answers on the socket. `may_come`: waiting for it makes sense. `absent`: no agent runs, for sure."""

    def __init__(self, message: str, *, may_come: bool = True, absent: bool = False) -> None:
        super().__init__(message)
        self.may_come = may_come
        self.absent = absent


class RefusedError(Exception):
    """What was asked cannot be had; the text says why. The agent's own words, where it was the agent that was asked."""


def unusable(error: OSError, path: Path | None = None) -> RefusedError:
    """A file or socket that cannot be used, in one line; what is root's alone says so."""
    why = f"{path or error.filename}: {(error.strerror or str(error)).lower()}"
    return RefusedError(f"{why}; only root may do this, use sudo" if isinstance(error, PermissionError) else why)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class AgentClient:
    """Asks the agent of a run directory, one connection for each question.

    Every method raises NoAgentError when nobody answers and RefusedError with the agent's own words.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / SOCKET_NAME

    def status(self, timeout_s: float = ANSWER_S) -> Json:
        """The status of everything (`agent.core.tell.status`)."""
        return self._ask("GET", "/v1/status", None, timeout_s)

    def intent(self, verb: str, name: str) -> str:
        """Ask for `start`, `stop`, `restart` and the like. Never repeated: a restart heard twice would be two."""
        return str(self._ask("POST", "/v1/intent", {"verb": verb, "name": name}, ANSWER_S)["message"])

    def hold(self, name: str, reason: str) -> str:
        """Ask that a guest be left alone."""
        return str(self._ask("POST", "/v1/hold", {"name": name, "reason": reason}, ANSWER_S)["message"])

    def approve(self, identity: str) -> str:
        """Allow what a question of this id is about."""
        return str(self._ask("POST", "/v1/approve", {"id": identity}, ANSWER_S)["message"])

    def moves(self) -> Json:
        """All moves of uplinks."""
        return self._ask("GET", "/v1/moves", None, ANSWER_S)

    def confirm(self, bridge: str | None) -> str:
        """Say that a move of an uplink is well."""
        return str(self._ask("POST", "/v1/confirm", {"bridge": bridge}, ANSWER_S)["message"])

    def set_down(self, *, down: bool, budget_s: float | None = None) -> str:
        """Have all guests stopped in order and none started, or have them started again."""
        body = {"down": down, "budget_s": budget_s}
        return str(self._ask("POST", "/v1/down", body, ANSWER_S)["message"])

    def plan(self, files: Mapping[str, bytes | None]) -> Json:
        """What the agent would do from here to settled, with these unit files in place by their names (None: gone)."""
        texts = {n: None if data is None else data.decode(errors="surrogateescape") for n, data in files.items()}
        return self._ask("POST", "/v1/plan", {"files": texts}, PLAN_S)

    def why(self, name: str) -> Json:
        """Why what a name stands for is as it is."""
        return self._ask("GET", f"/v1/why?{urlencode({'name': name})}", None, ANSWER_S)

    def show(self, name: str) -> Json:
        """What a name stands for in its unit, last good, and as it runs."""
        return self._ask("GET", f"/v1/show?{urlencode({'name': name})}", None, ANSWER_S)

    def doctor(self) -> Json:
        """What the agent finds that will break guests, looked at now."""
        return self._ask("GET", "/v1/doctor", None, DOCTOR_S)

    def measures(self, max_age_s: float) -> Json:
        """All guests' counters (`agent.core.tell.looks`), none older than this if they can be had so soon."""
        return self._ask("GET", f"/v1/measures?{urlencode({'max_age_s': f'{max_age_s:g}'})}", None, ANSWER_S)

    def wait(self, what: str, name: str | None, timeout_s: float | None) -> tuple[bool, str]:
        """Wait until it is true, for the agent as well; whether it came true, and the agent's words.

        `timeout_s` None: as long as it takes. Raises NoAgentError only if no agent answered by the timeout.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            question = {"what": what, "name": name, "timeout_s": left_s}
            try:
                answer = self._ask("POST", "/v1/wait", question, None if left_s is None else left_s + GRACE_S)
            except NoAgentError as error:
                if not error.may_come or (deadline_s is not None and time.monotonic() >= deadline_s):
                    raise
                time.sleep(POLL_S if left_s is None else min(POLL_S, left_s))
            else:
                return bool(answer["ok"]), str(answer["message"])

    def events(self, since: int, *, follow: bool) -> Iterator[Json]:
        """The kept events after number `since`; with `follow` also each new one until the agent goes away."""
        query = urlencode({"since": since, "follow": int(follow)})
        connection = _UnixConnection(self.path, ANSWER_S)
        try:
            response = self._send(connection, "GET", f"/v1/events?{query}", None)
            if follow and connection.sock is not None:
                connection.sock.settimeout(None)
            try:
                for line in response:
                    yield json.loads(line)
            except (OSError, http.client.HTTPException) as error:
                raise NoAgentError(f"the agent at {self.path} went away") from error
        finally:
            connection.close()

    def _ask(self, method: str, target: str, body: Mapping[str, object] | None, timeout_s: float | None) -> Json:
        connection = _UnixConnection(self.path, timeout_s)
        try:
            response = self._send(connection, method, target, body)
            answer = json.loads(response.read())
        except PermissionError as error:
            raise self._not_allowed() from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._no_agent(error) from error
        finally:
            connection.close()
        if not isinstance(answer, dict):
            raise NoAgentError(f"{self.path}: what answers there is no agent", may_come=False)
        return answer

    def _send(
        self, connection: _UnixConnection, method: str, target: str, body: Mapping[str, object] | None
    ) -> http.client.HTTPResponse:
        text = None if body is None else json.dumps(body)
        try:
            connection.request(method, target, text, {"Content-Type": "application/json"} if text else {})
            response = connection.getresponse()
        except PermissionError as error:
            raise self._not_allowed() from error
        except (OSError, http.client.HTTPException) as error:
            raise self._no_agent(error) from error
        if response.status != 200:
            raise RefusedError(_error_text(response))
        return response

    def _not_allowed(self) -> RefusedError:
        return RefusedError(f"{self.path}: permission denied: {MEMBERS}")

    def _no_agent(self, error: Exception) -> NoAgentError:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            message = f"no agent answers at {self.path}; start vmhost-agent, or name its --run-dir"
            return NoAgentError(message, absent=True)
        if isinstance(error, TimeoutError):
            return NoAgentError(f"the agent at {self.path} does not answer; it may be stopped or overloaded")
        if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
            return NoAgentError(f"the agent at {self.path} went away before it answered")
        return NoAgentError(f"{self.path}: {error}; check --run-dir", may_come=False)


def _error_text(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(response.read())["error"])
    except (ValueError, KeyError, TypeError):
        return f"the agent answered {response.status} {response.reason}; its log says why"
