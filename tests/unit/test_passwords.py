"""The file of users of the metrics listener, line by line."""

from __future__ import annotations

import pytest

from agent.telemetry.passwords import UsersError, hash_password, parse_users

HASH = "scrypt$2$1$1$c2FsdA==$Mg+j147YoCdA+qrUwvASXtMPpt7O8kuKFUTqdS+qQGA="
"""Of "secret" with the salt "salt", as `hashlib.scrypt` gives it: cheap, so that the tests are fast."""

WANT = "`vmhost hash-password NAME` writes"


def test_a_hash_knows_its_password_and_no_other() -> None:
    made = hash_password(b"secret")
    assert made.matches(b"secret")
    assert not made.matches(b"Secret")
    assert str(made).startswith("scrypt$16384$8$1$")
    assert str(hash_password(b"secret")) != str(made)
    assert parse_users(f"# monitoring\n\nprometheus:{made}\n") == {"prometheus": made}


def test_a_known_hash() -> None:
    assert parse_users(f"a:{HASH}")["a"].matches(b"secret")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", f"no user is in it; {WANT} a line for one"),
        ("# nobody\n", f"no user is in it; {WANT} a line for one"),
        ("a:secret\n", f"line 1 is no NAME:scrypt$…; {WANT} one"),
        (f"\na{HASH}\n", f"line 2 is no NAME:scrypt$…; {WANT} one"),
        (f":{HASH}", f"line 1 is no NAME:scrypt$…; {WANT} one"),
        ("a:scrypt$3$1$1$c2FsdA==$c2FsdA==", f"line 1 is no NAME:scrypt$…; {WANT} one"),
        ("a:scrypt$1048576$64$1$c2FsdA==$c2FsdA==", f"line 1 is no NAME:scrypt$…; {WANT} one"),
        ("a:scrypt$2$1$1$c$c2FsdA==", f"line 1 is no NAME:scrypt$…; {WANT} one"),
        (f"a:{HASH}\nb:{HASH}\na:{HASH}", "line 3 names a a second time; leave one of the two"),
    ],
)
def test_lines_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(UsersError) as caught:
        parse_users(text)
    assert str(caught.value) == problem
