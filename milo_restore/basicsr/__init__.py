"""MILO for BasicSR and its forks: ``import milo_restore.basicsr`` on top of a train.py is all it takes.

- ``type: MILOLoss`` and ``type: LPIPSLoss`` work in ``pixel_opt`` and in ``perceptual_opt``, ``type: calculate_milo``
  in ``val.metrics``;
- a curriculum knows the iteration, after a resume too;
- the log has the mean absolute residual beside MILO, and a warning where a network games it;
- what Restormer's configurations name and PyPI's basicsr lacks is there;
- ``import basicsr`` works beside today's torchvision, and ``--local-rank`` is understood.

Nothing of basicsr is imported by it. ``python -m milo_restore.basicsr`` is BasicSR's training program with all that,
and more; see `milo_restore.basicsr.launch`.
"""

from __future__ import annotations

from milo_restore.basicsr.door import install

install()
