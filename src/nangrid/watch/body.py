"""Makes the body of a training loop, found by its source, a function that runs it again for one batch.

The body stays within its own function and class, so that `self`, `super()` and `return` mean what they mean there. It
runs on the variables that it had when the batch was drawn: what it assigns does not reach the live loop.
"""

from __future__ import annotations

import ast
import copy
import dis
import linecache
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FrameType, FunctionType, GeneratorType
from typing import Any

_BATCH, _NUMBER, _ONCE = "nangrid_batch_", "nangrid_number_", "nangrid_once_"
_PASSING = ("enumerate", "iter", "islice", "tqdm", "tqdm_notebook", "track", "alive_it", "progress_bar")
"""What passes each batch on when it is drawn; anything else may change batches or draw them ahead."""
_PROGRESS_BARS = ("tqdm", "rich", "alive_progress", "fastprogress")
"""The packages of progress bars, whose frames may be between the loop and its batches."""


class Body:
    """What a loop does with one batch, from the point where it draws it to the end of the iteration."""

    def __init__(self, statements: list[ast.stmt], frame: FrameType, tree: ast.Module, owner: ast.FunctionDef | None):
        loaded, stored = _names(statements, ast.Load), _names(statements, ast.Store)
        self.carried = _read_before_assigned(statements)
        """Variables that the body takes over from the iteration before, such as a hidden state."""
        self._kept = {name for name in loaded if name in self.carried or name not in stored} - {_BATCH, _NUMBER}
        self._globals = frame.f_globals
        self._loaded = loaded
        self._function: CodeType | None = None
        if owner is None:
            module = ast.Module(statements, [])
            self._code = compile(ast.fix_missing_locations(module), frame.f_code.co_filename, "exec")
        else:
            self._function = self._code = _compiled(statements, frame, tree, owner, self._kept)

    def variables(self, frame: FrameType) -> dict[str, Any]:
        """The variables that the body needs, as they are now; of those of the module only what the body changes."""
        names = self._kept | {"__class__"} if self._function is not None else self.carried
        return {name: value for name, value in frame.f_locals.items() if name in names}

    def module_values(self) -> list[Any]:
        """What the body's names for things of the module stand for."""
        return [self._globals[name] for name in self._loaded if name in self._globals]

    def run(self, variables: Mapping[str, Any], batch: Any, number: int) -> None:
        """Run the body for a batch that was the loader's number `number`."""
        given = {**variables, _BATCH: batch, _NUMBER: number}
        if self._function is None:
            self._run_in_module(given)
            return
        code = self._function
        arguments = {name: given.get(name) for name in code.co_varnames[: code.co_argcount]}
        closure = tuple(CellType(given.get(name)) for name in code.co_freevars)
        FunctionType(code, self._globals, closure=closure)(**arguments)

    def _run_in_module(self, given: Mapping[str, Any]) -> None:
        before = dict(self._globals)
        self._globals.update(given)
        try:
            exec(self._code, self._globals)
        finally:
            for name in self._globals.keys() - before.keys():
                del self._globals[name]
            self._globals.update(before)


@dataclass
class BoundBody:
    """A body with the variables that it had when a batch was drawn; implements nangrid.watch.window.Repeatable."""

    body: Body
    variables: dict[str, Any]
    package: str
    number: int
    """The loader's number of the batch."""

    @property
    def objects(self) -> list[Any]:
        """What the loop's variables, and the module's that it uses, stand for."""
        return [*self.variables.values(), *self.body.module_values()]

    def run(self, batch: Any) -> None:
        """Run the body again, for its batch or a part of it."""
        self.body.run(self.variables, batch, self.number)


def bound_body(frame: FrameType | None, number: int) -> BoundBody | None:
    """The body of the loop that draws the batch now, with its variables; None if it cannot be found."""
    found = find_body(frame)
    if found is None:
        return None
    body, frame = found
    return BoundBody(body, body.variables(frame), package_of(frame.f_globals.get("__name__", "")), number)


def package_of(module: str) -> str:
    """The outermost package of a module."""
    return module.partition(".")[0]


def find_body(frame: FrameType | None) -> tuple[Body, FrameType] | None:
    """The loop that draws the batch, and its frame; None without source, or with something between loop and batches."""
    while frame is not None:
        # The same loop may be handed the batches in one call, and pairs of them in another.
        key = (frame.f_code, frame.f_lineno, frozenset(n for n, value in frame.f_locals.items() if _is_batches(value)))
        if key not in _found:
            _found[key] = _body_at(frame)
        body = _found[key]
        if body is not None:
            return body, frame
        if not _is_progress_bar(frame):
            return None
        frame = frame.f_back
    return None


_found: dict[tuple[CodeType, int, frozenset[str]], Body | None] = {}


def _body_at(frame: FrameType) -> Body | None:
    lines = linecache.getlines(frame.f_code.co_filename, frame.f_globals)
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError):
        return None
    owner = _owner(tree, frame.f_code)
    if owner is None and frame.f_code.co_name != "<module>":
        return None
    loops = [node for node in _within(owner or tree) if isinstance(node, ast.For | ast.While)]
    inside = [node for node in loops if node.lineno <= frame.f_lineno <= (node.end_lineno or 0)]
    if not inside:
        return None
    loop = max(inside, key=lambda node: node.lineno)
    draws = frame.f_code.co_code[frame.f_lasti] == dis.opmap["FOR_ITER"]
    statements = _from_for(loop, frame) if draws else _from_next(loop, frame)
    if statements is None or any(isinstance(n, ast.Yield | ast.YieldFrom | ast.Await) for n in _walk(statements)):
        return None
    return Body(statements, frame, tree, owner)


def _owner(tree: ast.Module, code: CodeType) -> ast.FunctionDef | None:
    """The function that the code was compiled from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


def _from_for(loop: ast.For | ast.While, frame: FrameType) -> list[ast.stmt] | None:
    """The body of a `for` that draws the batches itself."""
    drawn = _drawn(loop.iter, frame) if isinstance(loop, ast.For) else None
    if drawn is None or isinstance(loop, ast.While):
        return None
    return _once(loop, [ast.copy_location(ast.Assign([loop.target], drawn), loop), *loop.body])


def _drawn(iterated: ast.expr, frame: FrameType) -> ast.expr | None:
    """What the loop's target is assigned, as `enumerate` and progress bars pass the batch on; None if not known."""
    if isinstance(iterated, ast.IfExp):  # `watch.batches(loader) if watched else loader`
        found = [_drawn(branch, frame) for branch in (iterated.body, iterated.orelse)]
        drawn = {ast.dump(expression): expression for expression in found if expression is not None}
        return drawn.popitem()[1] if len(drawn) == 1 else None
    if not isinstance(iterated, ast.Call):
        return ast.Name(_BATCH, ast.Load()) if _is_batches(_value(iterated, frame)) else None
    if _calls_batches(iterated, frame):
        return ast.Name(_BATCH, ast.Load())
    inner = _drawn(iterated.args[0], frame) if iterated.args and _called(iterated) in _PASSING else None
    if inner is None or _called(iterated) != "enumerate":
        return inner
    start = [*iterated.args[1:], *(keyword.value for keyword in iterated.keywords), ast.Constant(0)][0]
    return ast.Tuple([ast.BinOp(start, ast.Add(), ast.Name(_NUMBER, ast.Load())), inner], ast.Load())


def _calls_batches(call: ast.Call, frame: FrameType) -> bool:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr == "batches"
    return getattr(_value(call.func, frame), "__qualname__", "") == "Watch.batches"


def _is_batches(value: Any) -> bool:
    """Whether an object is what `watch.batches` has returned, or a progress bar."""
    if not isinstance(value, GeneratorType):
        return str(type(value).__module__).partition(".")[0] in _PROGRESS_BARS
    return value.gi_code.co_qualname == "BatchLoop.batches" or _is_progress_bar(value.gi_frame)


def _is_progress_bar(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PROGRESS_BARS


def _value(expression: ast.expr, frame: FrameType) -> Any:
    """The value of a variable or an attribute; None for other expressions. It runs no code of the loop's."""
    if isinstance(expression, ast.Name):
        return frame.f_locals.get(expression.id, frame.f_globals.get(expression.id))
    if isinstance(expression, ast.Attribute):
        return getattr(_value(expression.value, frame), "__dict__", {}).get(expression.attr)
    return None


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _from_next(loop: ast.For | ast.While, frame: FrameType) -> list[ast.stmt] | None:
    """The rest of a loop's body, from the statement that calls `next`."""
    for index, statement in enumerate(loop.body):
        if statement.lineno <= frame.f_lineno <= (statement.end_lineno or 0):
            replaces = _BatchForNext(frame)
            first: ast.stmt = replaces.visit(copy.deepcopy(statement))
            return _once(loop, [first, *loop.body[index + 1 :]]) if replaces.done else None
    return None


class _BatchForNext(ast.NodeTransformer):
    """Puts the batch in place of the call of `next` in one line."""

    def __init__(self, frame: FrameType) -> None:
        self.frame = frame
        self.done = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace `next(batches)`."""
        here = _called(node) == "next" and node.lineno == self.frame.f_lineno
        if here and node.args and _is_batches(_value(node.args[0], self.frame)):
            self.done = True
            return ast.copy_location(ast.Name(_BATCH, ast.Load()), node)
        return self.generic_visit(node)


def _once(loop: ast.stmt, statements: list[ast.stmt]) -> list[ast.stmt]:
    """The statements in a loop of one round, where `continue` and `break` have a meaning."""
    rounds = ast.Tuple([ast.Constant(0)], ast.Load())
    return [ast.copy_location(ast.For(ast.Name(_ONCE, ast.Store()), rounds, statements, []), loop)]


def _compiled(
    statements: list[ast.stmt], frame: FrameType, tree: ast.Module, owner: ast.FunctionDef, names: set[str]
) -> CodeType:
    """The code of `owner` with these statements as its body and these variables as its arguments."""
    scopes = [node for node in _within(owner) if isinstance(node, ast.Global | ast.Nonlocal)]
    declared = {name for scope in scopes for name in scope.names}
    local = {*frame.f_code.co_varnames, *frame.f_code.co_cellvars} - declared
    arguments = [ast.arg(name) for name in (*sorted(names & local), _BATCH, _NUMBER)]
    owner.args = ast.arguments([], arguments, None, [], [], None, [])
    owner.body, owner.decorator_list, owner.returns = [*scopes, *statements], [], None
    code = compile(ast.fix_missing_locations(tree), frame.f_code.co_filename, "exec", dont_inherit=True)
    return next(c for c in _codes(code) if c.co_name == owner.name and c.co_firstlineno == owner.lineno)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _read_before_assigned(statements: list[ast.stmt]) -> set[str]:
    """Names that may be read before the statements assign them; a branch or an inner loop may leave them out."""
    assigned: set[str] = set()
    carried: set[str] = set()
    for part in _flat(statements):
        augmented = {
            n.target.id for n in _walk([part]) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)
        }
        carried |= (_names([part], ast.Load) | augmented) - assigned
        if isinstance(part, ast.Assign | ast.AnnAssign | ast.withitem):
            assigned |= _names([part], ast.Store)
    return carried & _names(statements, ast.Store)


def _flat(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements in their order, those within `with` and the single round included."""
    for statement in statements:
        if isinstance(statement, ast.With):
            yield from statement.items
            yield from _flat(statement.body)
        elif isinstance(statement, ast.For) and isinstance(statement.target, ast.Name) and statement.target.id == _ONCE:
            yield from _flat(statement.body)
        else:
            yield statement


def _names(nodes: Iterable[ast.AST], context: type[ast.expr_context]) -> set[str]:
    return {n.id for n in _walk(nodes) if isinstance(n, ast.Name) and isinstance(n.ctx, context)} - {_ONCE}


def _walk(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    return (inner for node in nodes for inner in ast.walk(node))


def _within(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope, without those of functions and classes in it."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield node
            yield from _within(node)
