"""What units name in other units: the bridges of NICs, and the guests that a guest starts after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from agent.core.marks import vm_resource
from agent.core.text import printable
from agent.unitfile.claims import Reference
from agent.unitfile.conflicts import Finding, Side
from agent.unitfile.parse import suggestion
from agent.unitfile.values import quoted

COMPARISONS = 200_000
"""As many names are compared for suggestions in one resolution: past that, thousands of misspelt names get none."""


class _Names:
    """The names of one kind that units define: in versions that run, and in new ones that have errors."""

    def __init__(self, kind: str, sides: Sequence[Side]) -> None:
        self.running: dict[str, str] = {}
        self.claimed: dict[str, str] = {}
        self._budget = COMPARISONS
        self._suggested: dict[str, str] = {}
        prefix = f"{kind}/"
        for side in sides:
            if side.chosen is not None:
                for name in side.chosen.bridges if kind == "bridge" else side.chosen.vms:
                    self.running[name] = side.path
            if side.chosen is not side.new:
                for claim in side.new.claims:
                    if claim.kind == "name" and claim.resource.startswith(prefix):
                        self.claimed.setdefault(claim.resource.removeprefix(prefix), side.path)

    def suggestion(self, name: str) -> str:
        """A name that is defined and looks like this one, as a hint."""
        if name not in self._suggested:
            choices = sorted({*self.running, *self.claimed})
            self._budget -= len(choices)
            self._suggested[name] = suggestion(name, choices, cutoff=0.6) if self._budget >= 0 else ""
        return self._suggested[name]


def find_dangling(sides: Sequence[Side]) -> Iterator[Finding]:
    """References of new versions that lead nowhere, with what they were probably meant to name."""
    names: dict[str, _Names] = {}
    for side in sides:
        for reference in side.new.references:
            known = names.get(reference.kind) or names.setdefault(reference.kind, _Names(reference.kind, sides))
            if reference.target not in known.running:
                follows = reference.target in known.claimed
                yield Finding(side, reference.where, *_words(side, reference, known), follows=follows)


def _words(side: Side, reference: Reference, known: _Names) -> tuple[str, str]:
    what = f"{'guest' if reference.kind == 'vm' else 'bridge'} {quoted(reference.target)}"
    if reference.target in known.claimed:
        return f"{what} is defined in {printable(known.claimed[reference.target])}, which has errors", ""
    if side.had_reference(reference):
        kept = "the bridge stays as it was" if reference.kind == "bridge" else "the guest no longer waits for it"
        return f"{what} is no longer defined in any file", kept
    return f"{what} is not defined in any file", known.suggestion(reference.target)


class _Edge(NamedTuple):
    """A guest that starts after another one, and where that is written."""

    side: Side
    reference: Reference
    source: str
    established: bool


def find_loops(sides: Iterable[Side]) -> Iterator[Finding]:
    """Guests that would wait for each other, told once in each file that newly closes the loop."""
    edges: dict[str, list[_Edge]] = {}
    for side in sides:
        unit = side.chosen if side.runs_last_good and side.chosen is not None else side.new
        for reference in unit.references:
            if reference.kind == "vm":
                source = reference.resource.removeprefix(vm_resource(""))
                established = unit is not side.new or side.had_reference(reference)
                edges.setdefault(source, []).append(_Edge(side, reference, source, established))
    graph = {source: [edge.reference.target for edge in out] for source, out in edges.items()}
    for component in _components(graph):
        inside = [
            edge for name in sorted(component) for edge in edges.get(name, ()) if edge.reference.target in component
        ]
        if not inside:
            continue
        blamed = [edge for edge in inside if not edge.established] or inside
        for side, edge in {edge.side.path: (edge.side, edge) for edge in reversed(blamed)}.values():
            if edge.reference in side.new.references:
                loop = [edge.source, *_way(graph, component, edge.reference.target, edge.source)]
                chain = " -> ".join(f"vm:{name}" for name in loop)
                yield Finding(side, edge.reference.where, f"after makes a loop: {chain}")


def in_loops(after: Mapping[str, Sequence[str]]) -> frozenset[tuple[str, str]]:
    """The edges of a graph that lie on loops: pairs of a guest and what it starts after."""
    return frozenset(
        (name, target)
        for component in _components(after)
        for name in component
        for target in after.get(name, ())
        if target in component
    )


def _way(graph: Mapping[str, Sequence[str]], component: frozenset[str], start: str, goal: str) -> list[str]:
    """The shortest way from one guest to another inside a component, both included; at most ten are named."""
    before: dict[str, str] = {start: ""}
    pending = [start]
    for name in pending:
        if name == goal:
            break
        for target in sorted(graph.get(name, ())):
            if target in component and target not in before:
                before[target] = name
                pending.append(target)
    way = [goal]
    while before.get(way[-1]):
        way.append(before[way[-1]])
    way.reverse()
    return way if len(way) <= 10 else [*way[:8], "…", goal]


def _components(graph: Mapping[str, Sequence[str]]) -> Iterator[frozenset[str]]:
    """The strongly connected components (Tarjan's algorithm, without recursion: chains may be thousands long).

    What leads to no loop is left out first; mostly that is everything.
    """
    graph = _without_ends(graph)
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    for root in graph:
        if root in number:
            continue
        work = [(root, iter(graph[root]))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            name, targets = work[-1]
            for target in targets:
                if target not in number:
                    number[target] = low[target] = len(number)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(graph.get(target, ()))))
                    break
                if target in on_stack:
                    low[name] = min(low[name], number[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == number[name]:
                    component = frozenset(stack[stack.index(name) :])
                    del stack[-len(component) :]
                    on_stack -= component
                    yield component


def _without_ends(graph: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """The graph without whatever leads to no loop, however long its chains are."""
    sources: dict[str, list[str]] = {}
    left: dict[str, int] = {}
    for source, targets in graph.items():
        left[source] = len(targets)
        for target in targets:
            sources.setdefault(target, []).append(source)
    ends = [name for name in sources if name not in graph]
    ends += [name for name, count in left.items() if not count]
    for end in ends:
        for source in sources.get(end, ()):
            left[source] -= 1
            if not left[source]:
                ends.append(source)
    gone = frozenset(ends)
    return {source: targets for source, targets in graph.items() if source not in gone}
