"""The paper's Tables 1 to 4: what they print, what produces each row, and one's own numbers beside them."""

from milo_restore.paper.definition import NUMBERS, SCALES, ScaleName, Table, find_rows, load_table
from milo_restore.paper.plan import Cell, Job, jobs_of, plan, wanted_metrics
from milo_restore.paper.render import render

__all__ = [
    "NUMBERS",
    "SCALES",
    "Cell",
    "Job",
    "ScaleName",
    "Table",
    "find_rows",
    "jobs_of",
    "load_table",
    "plan",
    "render",
    "wanted_metrics",
]
