"""Netlink as bytes: what is written is read again, and no bytes whatever are a crash."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.core.netlink import (
    KIND_MASK,
    NLMSG_ERROR,
    Message,
    attribute_list,
    attributes,
    errno_of,
    framed,
    messages,
    packed,
    split,
)

KINDS = st.integers(0, 0xFFFF)
ATTRIBUTES = st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=8)
MESSAGES = st.lists(st.tuples(KINDS, KINDS, st.integers(0, 0xFFFFFFFF), st.binary(max_size=60)), max_size=5)


@given(ATTRIBUTES, st.binary(max_size=16))
def test_attributes_come_back_in_their_order(written: list[tuple[int, bytes]], head: bytes) -> None:
    data = head + b"".join(packed(kind, value) for kind, value in written)
    assert split(data, len(head)) == written
    plain = [(kind & KIND_MASK, value) for kind, value in written]
    assert attribute_list(data, len(head)) == plain
    assert attributes(data, len(head)) == dict(plain)


@given(MESSAGES)
def test_messages_come_back_in_their_order(written: list[tuple[int, int, int, bytes]]) -> None:
    datagram = b"".join(framed(*one) + bytes(-len(one[3]) % 4) for one in written)
    read = [(message.type, flags, sequence, message.body) for message, flags, sequence in messages(datagram)]
    assert read == written


@given(st.binary(max_size=200))
def test_no_bytes_are_a_crash(data: bytes) -> None:
    for message, _, _ in messages(data):
        assert len(message.body) <= len(data)
        assert errno_of(message) >= 0
    assert dict(attribute_list(data)) == attributes(data)


@given(st.integers(0, 4095))
def test_a_refusal_has_an_errno_and_an_acknowledgement_none(number: int) -> None:
    body = (-number).to_bytes(4, "little", signed=True)
    assert errno_of(Message(NLMSG_ERROR, body + bytes(16))) == number
    assert errno_of(Message(NLMSG_ERROR, b"")) == 0
