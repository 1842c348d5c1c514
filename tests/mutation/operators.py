"""Every small way to break a module: each mutant differs from the source in one place."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitOr: ast.BitAnd,
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "iter"}
NOT_CODE = frozenset({"annotation", "returns", "decorator_list", "type_comment", "args", "bases"})
TESTED = (ast.If, ast.IfExp, ast.While)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way in which a module is wrong. `what` is for people; `code` is the whole module, compiled."""

    module: str
    line: int
    what: str
    code: CodeType

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.what}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the tree a node hangs."""

    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    found: dict[tuple[int, str], Mutant] = {}
    for place, node in _places(tree):
        for other in _variants(place, node):
            line = getattr(node, "lineno", 0)
            what = f"`{_shown(node)}` → `{_shown(other)}`"
            place.put(ast.copy_location(other, node) if isinstance(other, ast.expr | ast.stmt) else other)
            code = compile(ast.fix_missing_locations(tree), module, "exec")
            place.put(node)
            found.setdefault((line, what), Mutant(module, line, what, code))
    return sorted(found.values(), key=lambda mutant: (mutant.line, mutant.what))


def _places(tree: ast.Module) -> Iterator[tuple[_Place, ast.AST]]:
    """Every node of every function's body and of the constants of the module, but no docstring and no annotation."""
    pending: list[ast.AST] = [tree]
    while pending:
        parent = pending.pop()
        for field, value in ast.iter_fields(parent):
            if field in NOT_CODE and not (isinstance(parent, ast.Call) and field == "args"):
                continue
            for index, node in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(node, ast.AST) or isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
                    continue
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    continue
                yield _Place(parent, field, index if isinstance(value, list) else None), node
                pending.append(node)


def _variants(place: _Place, node: ast.AST) -> Iterator[ast.AST]:
    yield from _operators(node)
    yield from _values(place, node)
    yield from _statements(node)
    if isinstance(place.parent, TESTED) and place.field == "test" and isinstance(node, ast.expr):
        yield ast.Constant(value=True)
        yield ast.Constant(value=False)
    if isinstance(place.parent, ast.comprehension) and place.field == "ifs":
        yield ast.Constant(value=True)


def _operators(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=ops, left=left, comparators=comparators):
            for number in range(len(ops)):
                changed = [COMPARED.get(type(o), type(o))() if n == number else o for n, o in enumerate(ops)]
                yield ast.Compare(left=left, ops=changed, comparators=comparators)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(op=ast.Or() if isinstance(op, ast.And) else ast.And(), values=values)
            for number in range(len(values)):
                rest = values[:number] + values[number + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op=op, values=rest)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in COMPUTED:
            yield ast.BinOp(left=left, op=COMPUTED[type(op)](), right=right)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case _:
            pass


def _values(place: _Place, node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test=test, body=orelse, orelse=body)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(value=not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value=value + 1)
        case ast.Constant(value=str() as value) if value and " " not in value:
            yield ast.Constant(value=f"{value}!")
        case ast.Name(id=name) if name in CALLS and isinstance(place.parent, ast.Call) and place.field == "func":
            yield ast.Name(id=CALLS[name], ctx=ast.Load())
        case ast.Attribute(value=ast.Name(id="Reason"), attr=attr):
            yield ast.Attribute(
                value=ast.Name(id="Reason", ctx=ast.Load()), attr="RESET" if attr != "RESET" else "MTU", ctx=ast.Load()
            )


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Expr(value=ast.Call()) | ast.Continue() | ast.Break() | ast.Return(value=None) | ast.AugAssign():
            yield ast.Pass()
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(value=ast.Constant(value=None))
        case ast.Return(value=ast.Constant(value=bool())):
            yield ast.Pass()


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(copy.deepcopy(node)).split())
    return text if len(text) <= 90 else f"{text[:89]}…"
