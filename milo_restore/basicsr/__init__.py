"""MILO for BasicSR: ``import milo_restore.basicsr`` on top of a train.py is all it takes.

- ``type: MILOLoss`` and ``type: LPIPSLoss`` work in ``pixel_opt`` and in ``perceptual_opt``;
- a curriculum knows the iteration, after a resume too;
- the log has the mean absolute residual beside MILO, and a warning where a network games it;
- what Restormer's configurations name and PyPI's basicsr lacks is there;
- ``import basicsr`` works beside today's torchvision.

``python -m milo_restore.basicsr`` is BasicSR's training program with all that, and more; see
`milo_restore.basicsr.launch`.
"""

from __future__ import annotations

from milo_restore.compat import refuse_restormer_fork

refuse_restormer_fork()

from milo_restore.basicsr import curriculum, losses, restormer, watch  # noqa: E402  (they import basicsr)

losses.register()
restormer.register()
curriculum.install()
watch.install()
