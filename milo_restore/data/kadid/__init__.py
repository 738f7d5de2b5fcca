"""KADID-10k's distortion model: 25 distortions of five levels each (Lin, Hosu and Saupe, QoMEX 2019)."""

from __future__ import annotations

from milo_restore.data.kadid.model import DISTORTIONS, LEVELS, Distortion, distort, find_distortion

__all__ = ["DISTORTIONS", "LEVELS", "Distortion", "distort", "find_distortion"]
