"""Who listens on this host's ports: what the kernel tells at once is what it prints."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from agent.host import listeners
from agent.host.listeners import find_free, find_holders
from tests.netns import ip, network_namespace

MANY = 700
"""More than fit in one datagram."""


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        ip("link set lo up")
        yield


def listen(stack: ExitStack, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((address, port))
    found.listen()
    return found


def test_the_kernel_tells_what_it_prints() -> None:
    with ExitStack() as stack:
        for port in range(2000, 2000 + MANY):
            listen(stack, "::", port)
        listen(stack, "0.0.0.0", 80)
        listen(stack, "127.0.0.2", 81)
        server = listen(stack, "::1", 82)
        stack.enter_context(socket.create_connection(("::1", 82)))  # which listens to nobody
        stack.enter_context(server.accept()[0])
        told = listeners._diagnosed()
        assert told is not None
        assert sorted(told) == sorted(listeners._printed("tcp"))
        assert len(told) == MANY + 3


def test_nobody_listens() -> None:
    assert listeners._diagnosed() == []
    assert find_holders(["80/tcp", "53/udp"]) == {"80/tcp": "", "53/udp": ""}


def test_holders_of_ports_by_their_address_and_user(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["80/tcp", "81/tcp", "82/tcp", "127.0.0.2:81/tcp", "[::]:80/tcp"]
    with ExitStack() as stack:
        listen(stack, "0.0.0.0", 80)
        listen(stack, "127.0.0.2", 81)
        listen(stack, "::", 82)
        holder = f"(pid {os.getpid()})"
        for _ in range(2):  # by either way
            found = find_holders(texts)
            assert {text for text, who in found.items() if holder in who} == {"80/tcp", "82/tcp"}
            assert not any(find_holders(texts, {os.getuid()}).values())
            monkeypatch.setattr(listeners, "_NETLINK_SOCK_DIAG", 31)  # a protocol that there is not


def test_ports_that_nobody_has() -> None:
    texts = ["80/tcp", "[::]:80/tcp", "81/tcp", "82-90/tcp", "53/udp", "54/udp"]
    with ExitStack() as stack:
        listen(stack, "0.0.0.0", 80)
        listen(stack, "127.0.0.2", 81)
        listen(stack, "::", 85)
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("0.0.0.0", 53))
        assert find_free(texts) == {text for text, who in find_holders(texts).items() if not who}
        assert find_free(texts) == {"[::]:80/tcp", "81/tcp", "54/udp"}
        assert find_free(texts, {os.getuid()}) == set(texts)


def test_a_kernel_that_cannot_be_asked_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        listen(stack, "0.0.0.0", 80)
        monkeypatch.setattr(listeners, "_SOCK_DIAG_BY_FAMILY", 99)
        assert listeners._diagnosed() is None
        assert find_free(["81/tcp"]) == set()  # it is not known
        assert "pid" in find_holders(["80/tcp"])["80/tcp"]
