"""Words and tables for the terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

ARROWS = {"higher": "↑", "lower": "↓"}
"""The better direction, as tables show it."""


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "†": r"$\dagger$", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


class CSVWriter:
    """csv.writer, of texts that no spreadsheet takes for formulas: a name that begins like one gets an apostrophe.

    Args:
        file: what is written to.
    """

    def __init__(self, file: io.StringIO) -> None:
        self._writer = csv.writer(file, lineterminator="\n")

    def writerow(self, row: Iterable[object]) -> None:
        """Write one line."""
        self._writer.writerow([self._harmless(cell) for cell in row])

    def writerows(self, rows: Iterable[Iterable[object]]) -> None:
        """Write several lines."""
        for row in rows:
            self.writerow(row)

    @staticmethod
    def _harmless(cell: object) -> object:
        formula = isinstance(cell, str) and len(cell) > 1 and cell[0] in "=+-@\t\r"
        return f"'{cell}" if formula else cell


def counted(images: int) -> str:
    """A number of images, in words."""
    return f"{images} image{'' if images == 1 else 's'}"


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the head first, in columns for the terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def slug(text: str) -> str:
    """A name for folders: ``MILO (100k*)`` is ``milo-100k-star``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("*", " star")).strip("-")


def tex(text: str) -> str:
    """Text for LaTeX: its special characters and the arrows of tables."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
