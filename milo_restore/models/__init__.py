"""Restoration networks."""

from __future__ import annotations

from milo_restore.models.restormer import Restormer

__all__ = ["Restormer"]
