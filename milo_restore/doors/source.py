"""The lines of a program in which flow matching noises and compares, found in its source and led past a door.

diffusers' scripts for SD3, FLUX and their kind call no function for either: they write
``noisy = (1.0 - sigmas) * model_input + sigmas * noise`` and ``(model_pred.float() - target.float()) ** 2``. In the
code that is executed the first is also shown to the door, and the second computed by it; no file is changed, and where
the door has nothing to say the values are the same.
"""

from __future__ import annotations

import ast
from types import CodeType

__all__ = ["DOOR", "as_written", "compiled"]

DOOR = "__milo_restore_door__"
"""The name under which the code finds the door, a `milo_restore.doors.diffusers.Door`."""


def compiled(source: str, path: str) -> CodeType:
    """The code of a program; rewritten only where it holds a line of either kind.

    Args:
        source: of the program.
        path: its file, for tracebacks.

    Raises:
        SyntaxError: it is not Python.
    """
    tree = ast.parse(source, path)
    lines = _Lines()
    rewritten = lines.visit(tree)
    if not lines.noisings:
        return as_written(source, path)
    return compile(ast.fix_missing_locations(rewritten), path, "exec", dont_inherit=True)


def as_written(source: str, path: str) -> CodeType:
    """The code of a program, nothing rewritten; for where no `DOOR` is there to be found."""
    return compile(source, path, "exec", dont_inherit=True)


class _Lines(ast.NodeTransformer):
    def __init__(self) -> None:
        self.noisings = 0

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        original = node
        node = self.generic_visit(node)  # type: ignore[assignment]
        parts = _interpolation(original)
        if parts is not None:
            share, first, second = parts
            noise = ["noise" in ast.unparse(part) for part in (first, second)]
            if noise[0] != noise[1]:
                self.noisings += 1
                return ast.copy_location(_call("interpolated", node, *parts, ast.Constant(noise[0])), node)
        if _is_squared_difference(original):
            assert isinstance(node.left, ast.BinOp)  # noqa: S101  (checked on the original)
            return ast.copy_location(_call("squared", node.left.left, node.left.right), node)
        return node


def _interpolation(node: ast.BinOp) -> tuple[ast.expr, ast.expr, ast.expr] | None:
    """s, a and b of ``(1 - s) * a + s * b``."""
    left, right = node.left, node.right
    if not (isinstance(node.op, ast.Add) and _is(left, ast.Mult) and _is(right, ast.Mult)):
        return None
    rest, share = left.left, right.left  # type: ignore[attr-defined]
    if not (_is(rest, ast.Sub) and isinstance(rest.left, ast.Constant) and rest.left.value == 1):
        return None
    same = ast.dump(rest.right) == ast.dump(share)
    return (share, left.right, right.right) if same else None  # type: ignore[attr-defined]


def _is_squared_difference(node: ast.BinOp) -> bool:
    power = isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Constant) and node.right.value == 2
    return power and _is(node.left, ast.Sub)


def _is(node: ast.AST, kind: type[ast.operator]) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, kind)


def _call(method: str, *arguments: ast.expr) -> ast.Call:
    door = ast.Attribute(ast.Name(DOOR, ast.Load()), method, ast.Load())
    return ast.Call(door, list(arguments), [])
