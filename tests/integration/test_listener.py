"""The metrics listener with real TLS, real passwords and files that change; asked by real curl."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.runtime.listener import Sources, keep_listening
from agent.telemetry.guard import Protection
from agent.telemetry.httpd import Health
from agent.telemetry.journal import Journal
from agent.telemetry.listen import Listen
from agent.telemetry.passwords import hash_password
from tests.agent_process import AgentProcess
from tests.integration.waiting import wait_for

EVERY_S = 0.02


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@dataclass
class Served:
    """A listener and what it told."""

    journal: Journal = field(default_factory=Journal)
    problems: dict[str, str] = field(default_factory=dict)

    told: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, type_: str, message: str) -> None:
        self.problems[type_] = message
        self.told.set()

    def messages(self) -> list[str]:
        return [event.message for event in self.journal.since(0)]

    def url(self) -> str:
        """Where it listens now, as it said last."""
        return next(m for m in reversed(self.messages()) if m.startswith("metrics on http")).removeprefix("metrics on ")

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                self.told.clear()
                await self.told.wait()


@asynccontextmanager
async def listening(protection: Protection, *, up: bool = True) -> AsyncIterator[Served]:
    served = Served()
    sources = Sources(lambda _: b"vmhost_up 1\n", lambda: Health(True, "ok"), served.journal, served.note)
    task = asyncio.create_task(keep_listening(Listen("127.0.0.1", 0), protection, sources, EVERY_S))
    try:
        await served.until(lambda: bool(served.messages()))
        assert served.messages()[0].startswith("metrics on http") == up
        yield served
    finally:
        task.cancel()
        await asyncio.wait([task])


async def curl(*words: str) -> tuple[int, str]:
    """curl's exit code, and what it got with the status behind it."""
    command = ["curl", "--silent", "--noproxy", "*", "--max-time", "60", "--write-out", "%{http_code}", *words]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


async def presented(url: str, authority: Path) -> str:
    """The name in the certificate that a new connection is shown."""
    host, port = url.removeprefix("https://").removesuffix("/metrics").split(":")
    context = ssl.create_default_context(cafile=str(authority))
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    subject = writer.get_extra_info("peercert")["subject"]
    writer.close()
    await writer.wait_closed()
    return str(subject[0][0][1])


async def test_tls_and_users_together(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    users = tmp_path / "users"
    users.write_text(f"prometheus:{hash_password(b'se:cret')}\nother:{hash_password(b'x')}\n")
    async with listening(Protection(certificate, key, users)) as served:
        url, ca = served.url(), ("--cacert", str(certificate))
        assert url.startswith("https://127.0.0.1:")
        assert await curl(*ca, "--user", "prometheus:se:cret", url) == (0, "vmhost_up 1\n200")
        assert await curl(*ca, "--user", "prometheus:se:cret", url) == (0, "vmhost_up 1\n200")
        for wrong in ("prometheus:x", "other:se:cret", "nobody:se:cret", "prometheus:"):
            assert await curl(*ca, "--user", wrong, url) == (0, "want a user and a password\n401"), wrong
        assert await curl(*ca, url) == (0, "want a user and a password\n401")
        for header in ("Basic", "Basic x", "Basic eA==", "Bearer cHJvbWV0aGV1czpzZTpjcmV0"):
            assert (await curl(*ca, "--header", f"Authorization: {header}", url))[1].endswith("401"), header
        assert await curl(*ca, url.replace("/metrics", "/healthz")) == (0, "ok\n200")
        assert (await curl(url))[0] == 60  # a certificate that nobody vouches for
        assert (await curl(url.replace("https", "http")))[1] != "200"


async def test_a_renewed_certificate_is_shown_to_the_next_connection(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    async with listening(Protection(certificate, key)) as served:
        url = served.url()
        assert await presented(url, certificate) == "one"
        make_certificate(tmp_path, "two")
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await presented(url, certificate) == "two"
                    break
                except ssl.SSLCertVerificationError:
                    await asyncio.sleep(EVERY_S)  # it was not looked at yet
        await served.until(lambda: served.problems.get("MetricsFilesUnusable") == "")


async def test_a_torn_file_leaves_the_last_good_one_in_force(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    users = tmp_path / "users"
    users.write_text(f"a:{hash_password(b'1')}\n")
    good = certificate.read_text()
    authority = tmp_path / "authority.pem"
    authority.write_text(good)
    async with listening(Protection(certificate, key, users)) as served:
        url, ca = served.url(), ("--cacert", str(authority))
        certificate.write_text(good[:100])
        stays = "; what was read before stays in force"
        torn = (
            f"--listen-tls-cert {certificate} and --listen-tls-key {key} are no certificate and unencrypted key in PEM"
        )
        await served.until(lambda: served.problems.get("MetricsFilesUnusable") == f"{torn} format{stays}")
        assert await curl(*ca, "--user", "a:1", url) == (0, "vmhost_up 1\n200")
        certificate.write_text(good)
        users.write_text(f"a:{hash_password(b'2')}\n")
        await served.until(lambda: served.problems["MetricsFilesUnusable"] == "")
        async with asyncio.timeout(60):
            while not (await curl(*ca, "--user", "a:1", url))[1].endswith("401"):
                pass  # a look has fallen between the two
        assert await curl(*ca, "--user", "a:2", url) == (0, "vmhost_up 1\n200")
        users.unlink()
        gone = f"--listen-users {users}: no such file or directory; put it there{stays}"
        await served.until(lambda: served.problems["MetricsFilesUnusable"] == gone)
        assert await curl(*ca, "--user", "a:2", url) == (0, "vmhost_up 1\n200")


async def test_a_file_that_is_missing_is_told_and_waited_for(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    text = key.read_text()
    key.unlink()
    async with listening(Protection(certificate, key), up=False) as served:
        problem = f"--listen-tls-key {key}: no such file or directory; put it there"
        assert served.problems == {"MetricsUnavailable": problem}
        assert served.messages() == [problem]
        key.write_text(text)
        await served.until(lambda: served.problems["MetricsUnavailable"] == "")
        assert await curl("--cacert", str(certificate), served.url()) == (0, "vmhost_up 1\n200")


async def test_a_key_of_another_certificate_is_told_as_such(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    (tmp_path / "other").mkdir()
    _, other = make_certificate(tmp_path / "other", "two")
    async with listening(Protection(certificate, other), up=False) as served:
        assert served.problems == {
            "MetricsUnavailable": f"--listen-tls-cert {certificate} and --listen-tls-key {other} do not belong together"
        }
    encrypted = ["openssl", "ec", "-in", str(key), "-aes128", "-passout", "pass:x", "-out", str(other)]
    await asyncio.to_thread(subprocess.run, encrypted, check=True, capture_output=True)
    async with listening(Protection(certificate, other), up=False) as served:
        assert "are no certificate and unencrypted key in PEM format" in served.problems["MetricsUnavailable"]


@pytest.mark.parametrize(
    ("flags", "lacking"),
    [
        (
            (),
            "not encrypted (--listen-tls-cert, --listen-tls-key) and not kept for users (--listen-users)",
        ),
        (("--listen-users", "{users}"), "not encrypted (--listen-tls-cert, --listen-tls-key)"),
    ],
)
def test_the_agent_says_when_strangers_could_read(agent: AgentProcess, flags: tuple[str, ...], lacking: str) -> None:
    users = agent.folder / "users"
    made = agent.command("hash-password", "prometheus", stdin="secret\n")
    assert made.stdout.startswith("prometheus:scrypt$")
    users.write_text(made.stdout)
    agent.start("--listen", "0.0.0.0:9177", *(flag.format(users=users) for flag in flags))

    def conditions() -> dict[str, str]:
        return {c["type"]: c["message"] for c in agent.status()["agent"]["conditions"]}

    wait_for(conditions)
    assert conditions() == {
        "MetricsExposed": f"metrics and status page on 0.0.0.0:9177 can be reached from the network, and are {lacking}"
    }
    user = ("--user", "prometheus:secret") if flags else ()
    command = ["curl", "--silent", "--noproxy", "*", "--fail", *user, "http://127.0.0.1:9177/metrics"]
    # What is told is how it is to listen; it does so a moment later.
    wait_for(lambda: b"vmhost_build_info" in subprocess.run(command, capture_output=True, check=False).stdout)
