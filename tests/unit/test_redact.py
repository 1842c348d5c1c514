"""What is taken out of a report, and what stays to find a fault by."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.tell.redact import MARK, redacted, redacted_json


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('password = "hunter2"', f"password = {MARK}"),
        ("db_password='hunter2' x", f"db_password={MARK} x"),
        ('append = "root=/dev/vda rootpw=hunter2 quiet"', f'append = "root=/dev/vda rootpw={MARK} quiet"'),
        ('append = "k3s.token=K10abc::server:x,y"', f'append = "k3s.token={MARK},y"'),
        ('# old API-KEY: "a b\\"c" here', f"# old API-KEY: {MARK} here"),
        ('wifi-psk = """\nline one\nline two"""\ncpus = 1', f"wifi-psk = {MARK}\ncpus = 1"),
        ('"-object", "secret,id=s0,data=hunter2"', f'"-object", "secret,id=s0,data={MARK}"'),
        ("fetch https://me:hunter2@host/x", f"fetch https://me:{MARK}@host/x"),
        ("Authorization: Bearer abcdefgh1234", f"Authorization: Bearer {MARK}"),
        ("root:$6$salt$abcdefghijklmnop:1", f"root:{MARK}"),
        ("hash $6$salt$abcdefghijklmnop", f"hash {MARK}"),
        (
            "a\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\nbnNz\n-----END OPENSSH PRIVATE KEY-----\nz",
            f"a\n-----BEGIN OPENSSH PRIVATE KEY-----{MARK}-----END OPENSSH PRIVATE KEY-----\nz",
        ),
        ("-----BEGIN RSA PRIVATE KEY-----\ncut off", f"-----BEGIN RSA PRIVATE KEY-----{MARK}"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx9Xk2mT0aB me", f"ssh-ed25519 {MARK} me"),
        (r"append is \"token=abc\" now", rf"append is \"token={MARK}\" now"),
    ],
)
def test_a_secret_is_taken_out(text: str, clean: str) -> None:
    assert redacted(text)[0] == clean
    assert redacted(text)[1] >= 1


@pytest.mark.parametrize(
    "text",
    [
        'kernel = "/srv/vm/vmlinuz-6.1.0-18-Cloud-amd64-With-A-Very-Long-Name"',
        'uuid = "6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11"',
        'mac = "52:54:00:12:34:56"',
        'append = "console=ttyS0 root=/dev/vda quiet vmhost.nic0=192.168.77.10/24,192.168.77.1"',
        'qemu-system-x86_64: -blockdev {"driver": "qcow2"}: Failed to get "write" lock',
        "2026-01-01T00:00:05.123456Z launched web",
        "https://host:8080/path",
        "unexpected token in unit",
        'description = "keeps the secrets of the family"',
    ],
)
def test_what_finds_a_fault_stays(text: str) -> None:
    assert redacted(text) == (text, 0)


def test_json_stays_json() -> None:
    value = {"from": 'a token="x" b', "password": "p", "n": 1, "list": [None, True, "secret: s"]}
    clean, count = redacted_json(value)
    assert clean == {"from": f"a token={MARK} b", "password": MARK, "n": 1, "list": [None, True, f"secret: {MARK}"]}
    assert count == 3
    json.dumps(clean)


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'\\,;&<"), min_size=1))
def test_no_named_secret_survives(secret: str) -> None:
    for text in (f'password = "{secret}~"', f"x.token={secret}~ end", f"SECRET: '{secret}~'"):
        assert f"{secret}~" not in redacted(text)[0]


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    again, count = redacted(redacted(text)[0])
    assert (again, count) == (redacted(text)[0], 0)
