"""Any history of a directory of unit files resolves, whatever the order that the files come in."""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.references import guests_of
from agent.unitfile.resolve import Resolution
from tests.unit.unit_directory import BRIDGE, Directory, vm

TEXTS = [
    BRIDGE,
    "[bridge.br0]\nmtu = 1\n",
    '[bridge.br1]\nports = ["eth1"]\n' + BRIDGE,
    vm("a"),
    vm("a", nic='tap = "t"'),
    vm("b", nic='tap = "t"'),
    vm("b", 'after = ["vm:a"]'),
    vm("a", 'after = ["vm:b"]'),
    vm("c", 'after = ["vm:b", "vm:zz"]'),
    vm("c", nic='tap = "br0"'),
    "[vm.a\n",
    "x = 1\n",
    "",
]
SAVES = st.dictionaries(st.sampled_from("pqrs"), st.none() | st.sampled_from(TEXTS), max_size=4)


def check_invariants(result: Resolution, files: Iterable[str]) -> None:
    desired = result.desired
    assert {file.path for file in result.files} == set(files)
    assert {file.path for file in result.files if file.state == "invalid"} == desired.unresolved_files
    assert all((file.state == "valid") == (not file.errors) for file in result.files)
    taps = [nic.tap for spec in desired.vms.values() for nic in spec.nics]
    links = [*taps, *desired.bridges, *(port for spec in desired.bridges.values() for port in spec.ports)]
    assert len(links) == len(set(links))
    for spec in desired.vms.values():
        assert set(guests_of(spec.after)) <= desired.vms.keys()
        assert all(nic.bridge in desired.bridges or nic.bridge in desired.retained for nic in spec.nics)
    assert not desired.bridges.keys() & desired.retained.keys()


@settings(max_examples=200)
@given(st.lists(SAVES, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_every_history_resolves_whatever_the_order(history: list[dict[str, str | None]], rng: random.Random) -> None:
    one, other = Directory(), Directory()
    for saves in history:
        known = {name: text for name, text in saves.items() if text is not None or name in one.files}
        gone = {name for name, text in known.items() if text is None}
        before = one.last
        result = one.save(**known)
        check_invariants(result, one.files)
        if before is not None:
            unchanged = {file.path for file in before.files if file.state == "valid"} - known.keys()
            still = {name for name, spec in before.desired.vms.items() if spec.file in unchanged - gone}
            assert still <= result.desired.vms.keys(), "an edit of another file ended a guest"
        shuffled = list({**other.files, **known}.items())
        rng.shuffle(shuffled)
        other.files = {name: text for name, text in shuffled if text is not None}
        assert other.resolve() == result
