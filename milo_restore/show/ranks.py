"""Mean ranks on an axis, with bars over what the critical difference does not tell apart (Demsar 2006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, ROW = 640, 150, 20


def rank_diagram(ranks: Mapping[str, float], groups: Sequence[Sequence[str]], difference: float) -> str:
    """A critical-difference diagram as SVG, in the colour of the text around it.

    Args:
        ranks: mean rank of each method, 1 is best.
        groups: methods that cannot be told apart, each drawn as a bar.
        difference: the critical difference, drawn as a scale.
    """
    order = sorted(ranks, key=lambda name: ranks[name])
    span = WIDTH - 2 * LEFT

    def x(rank: float) -> float:
        return LEFT + span * (rank - 1) / max(len(order) - 1, 1)

    top = 46.0
    below = top + 12 + 8 * len(groups)
    half = (len(order) + 1) // 2
    height = below + ROW * half + 12
    parts = [_line(LEFT, top, LEFT + span, top, 1)]
    parts += [_line(x(rank), top - 4, x(rank), top + 4, 1) + _text(x(rank), top - 8, str(rank), "middle")
              for rank in range(1, len(order) + 1)]  # fmt: skip
    reach = min(span * difference / max(len(order) - 1, 1), span)
    parts.append(_line(LEFT, 16, LEFT + reach, 16, 1) + _text(LEFT + reach + 6, 20, f"CD {difference:.2f}", "start"))
    for number, group in enumerate(groups):
        y = top + 10 + 8 * number
        parts.append(_line(x(ranks[group[0]]) - 3, y, x(ranks[group[-1]]) + 3, y, 4))
    for place, name in enumerate(order):
        left = place < half
        y = below + ROW * (place if left else len(order) - 1 - place) + 8
        end = LEFT - 8 if left else LEFT + span + 8
        parts.append(_line(x(ranks[name]), top, x(ranks[name]), y, 1) + _line(x(ranks[name]), y, end, y, 1))
        label = f"{name} {ranks[name]:.2f}" if left else f"{ranks[name]:.2f} {name}"
        parts.append(_text(end - 4 if left else end + 4, y + 4, label, "end" if left else "start"))
    style = 'font-family="sans-serif" font-size="12" stroke="currentColor" fill="currentColor"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img" '
        f'aria-label="Mean ranks" {style}>{"".join(parts)}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, width: int) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" stroke="none">{escape(text)}</text>'
