"""Checks of a BasicSR configuration and its images: what is wrong is said in one line before the first iteration.

BasicSR finds most of these after it has made the experiment's folder, in a traceback; some of them hours later, in one
of a data worker or of the first validation; and some not at all.
"""

from __future__ import annotations

from milo_restore.basicsr.checks.images import check_images
from milo_restore.basicsr.checks.options import check_options

__all__ = ["check_images", "check_options"]
