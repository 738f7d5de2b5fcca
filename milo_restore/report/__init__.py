"""The HTML report: measured runs side by side, with their pictures."""

from milo_restore.report.page import write_report

__all__ = ["write_report"]
