"""Pseudo opinion scores: the labels that MILO is trained on, in place of people's.

The paper's labels come from an ensemble of E-metrics (its E-VGG, E-LPIPS, E-DISTS and E-DeepWSD) mapped
to MOS; of these no weights are at hand. `PseudoMOS` is a surrogate made of the metrics that are, and says so: it is not
the paper's "Ens." and is not to be compared with its column.

The members' raw values differ by orders of magnitude (E-MSE near 1e-3, E-PSNR near 40), so that their mean means
nothing. Each member is first mapped to MOS, where higher is better: by its own scaler network, 5 (1 - S(raw)), in
(0, 5), or by a logistic fitted on KADID-10k's opinions, in [1, 5] or so. The label is the mean of the mapped members.
Members, hashes and maps are saved as JSON with the weights trained on them; what is saved can be loaded as ``maps``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError, DataError, WeightsError, did_you_mean
from milo_restore.files import find_weights
from milo_restore.files.write import replace_file
from milo_restore.metric.e_pixel import ABSENT, E_PIXEL, EPixelMetric, load_e_pixel
from milo_restore.metric.milo import MILO

FORMAT = "milo-restore MOS maps, version 1"
OWN_SCALER = "own-scaler"
HIGHEST_MOS = 5.0
MEMBERS = ("official", "mini", *E_PIXEL)


@dataclass(frozen=True)
class MosMap:
    """Map from a member's raw value to a MOS.

    Attributes:
        kind: ``own-scaler``, 5 (1 - S(raw)) with the network S from the member's weight file; or ``logistic``,
            (b1 - b2) / (1 + exp(-(raw - b3) / |b4|)) + b2, limited to [0, 5]: beyond the fitted data, a curve that does
            not saturate leaves the scale of opinions.
        beta: b1 to b4 of a logistic.
        dataset: what a logistic was fitted on, as are ``split`` and ``pairs``, their number.
    """

    kind: Literal["own-scaler", "logistic"] = OWN_SCALER  # type: ignore[assignment]
    beta: tuple[float, float, float, float] | None = None
    dataset: str | None = None
    split: str | None = None
    pairs: int | None = None

    def __str__(self) -> str:
        return self.kind if self.beta is None else f"logistic on {self.dataset} {self.split}"


@dataclass(frozen=True, eq=False)
class Member:
    """A frozen metric with trained weights, and its map."""

    name: str
    metric: MILO | EPixelMetric
    map: MosMap

    @property
    def sha256(self) -> str:
        """The hash of its weight file."""
        assert self.metric.weights is not None  # noqa: S101  (load_member loads them)
        return self.metric.weights.sha256

    def mos(self, image: Tensor, reference: Tensor) -> Tensor:
        """The mapped score of each image, (N,)."""
        if self.map.beta is None:
            return self.metric.mos(image, reference=reference)
        top, bottom, place, width = self.map.beta
        raw = self.metric(image, reference=reference)
        # Where data do not saturate, b1 and b2 may be huge and cancel: in float32 little would be left.
        exact = raw.double() if raw.device.type != "mps" else raw.cpu().double()
        mapped = (top - bottom) * torch.sigmoid((exact - place) / abs(width)) + bottom
        return mapped.clamp(0, HIGHEST_MOS).to(raw)


class PseudoMOS(nn.Module):
    """The mean of several metrics' predictions of MOS. Use `from_names`; moves between devices as any module does.

    Attributes:
        members: the metrics with their maps, in order.
        absent: members of an ensemble that are not used, with the reason.
    """

    def __init__(self, members: Sequence[Member], absent: Mapping[str, str] | None = None) -> None:
        super().__init__()
        if not members:
            raise ConfigError("a teacher needs at least one member", where="teacher", mend=f"Known: {_known()}")
        self.members = tuple(members)
        self.absent = dict(absent or {})
        self._metrics = nn.ModuleList(member.metric for member in members)  # for .to(device)

    @classmethod
    def from_names(cls, teacher: str | Sequence[str], maps: str | Path = OWN_SCALER) -> PseudoMOS:
        """The teacher of this name.

        Args:
            teacher: ``ensemble``: every E-metric on pixels whose weights are here (none is downloaded);
                ``official`` or ``mini``: the published or the shipped MILO; the name of an E-metric on pixels; or
                a list of such names, the weights of which are downloaded where they are missing.
            maps: ``own-scaler``, or a file that `milo_restore.teach.maps.fit_maps` or `save` wrote, with the
                very same weights.

        Raises:
            ConfigError: no such teacher or member, or one named twice.
            WeightsError: no weights for any member, damaged ones, or others than the maps were made with.
            DataError: the file of maps cannot be read, or lacks a member.
        """
        names, absent = _names(teacher)
        members = [load_member(name) for name in names]
        if str(maps) != OWN_SCALER:
            known = _read_maps(Path(maps))
            members = [Member(m.name, m.metric, _map_of(m, known, Path(maps))) for m in members]
        return cls(members, absent)

    @torch.no_grad()
    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """The label of each image: the mean of its members' MOS, (N,), float32, higher is better; without gradient.

        Args:
            image: distorted images, (N, 3, H, W), RGB in [0, 1], of any mixture of distortions.
            reference: the undistorted ones, same shape and device.

        Raises:
            DataError: what the metrics themselves refuse.
        """
        return torch.stack([member.mos(image, reference) for member in self.members]).mean(0)

    @torch.no_grad()
    def each(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The MOS of each member, (N,), by name: what `forward` averages."""
        return {member.name: member.mos(image, reference) for member in self.members}

    def describe(self) -> str:
        """One line: members with hashes and maps, and which are absent and why."""
        used = ", ".join(f"{m.name} (sha256 {m.sha256[:12]}, {m.map})" for m in self.members)
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.absent.items():
            by_reason.setdefault(reason, []).append(name)
        gone = "; ".join(f"{', '.join(names)} {reason}" for reason, names in by_reason.items())
        return f"pseudo-MOS: mean of {used}" + (f"; absent: {gone}" if gone else "")

    def to_json(self) -> dict[str, Any]:
        """Members, hashes and maps as plain data: what `save` writes and ``maps`` reads."""
        members = {}
        for member in self.members:
            map_: dict[str, Any] = {"kind": member.map.kind}
            if member.map.beta is None:
                map_["formula"] = "5 (1 - S(gain * raw)), S: the scaler in the weight file"
                map_["gain"] = getattr(member.metric, "scaler_gain", 1.0)
            else:
                map_ |= {
                    "formula": "(b1 - b2) / (1 + exp(-(raw - b3) / |b4|)) + b2, in [0, 5]",
                    "beta": list(member.map.beta),
                }
                map_ |= {"dataset": member.map.dataset, "split": member.map.split, "pairs": member.map.pairs}
            members[member.name] = {"sha256": member.sha256, "map": map_}
        return {"format": FORMAT, "label": "mean of the mapped members", "members": members, "absent": self.absent}

    def save(self, path: str | Path) -> None:
        """Write `to_json` in one piece.

        Raises:
            DataError: it cannot be written.
        """
        replace_file(Path(path), json.dumps(self.to_json(), indent=2) + "\n")


def load_member(name: str) -> Member:
    """The metric of this name with its own scaler as the map.

    Raises:
        ConfigError: no such member, or one whose weights are not at hand.
        WeightsError: its weights are missing and cannot be downloaded, or damaged.
    """
    if name in E_PIXEL:
        return Member(name, load_e_pixel(name), MosMap())
    if name in ("official", "mini"):
        return Member(name, MILO.from_pretrained(name), MosMap())
    mend = f"It is {ABSENT[name]}" if name in ABSENT else did_you_mean(name, MEMBERS)
    raise ConfigError(f"{name!r} is no member of a teacher", where="teacher", mend=mend or f"Known: {_known()}")


def _names(teacher: str | Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The members of a teacher, and those of the ensemble that are absent, with the reason."""
    if teacher != "ensemble":
        names = [teacher] if isinstance(teacher, str) else list(teacher)
        if len(set(names)) != len(names):
            raise ConfigError(f"a member is named twice: {', '.join(names)}", where="teacher")
        return names, {}
    found = [name for name in E_PIXEL if find_weights(name) is not None]
    missing = [name for name in E_PIXEL if name not in found]
    if not found:
        mend = f"Run 'milo-restore assets fetch {' '.join(E_PIXEL)}', or use the teacher 'official' or 'mini'"
        raise WeightsError("no E-metric's weights are here", where="teacher 'ensemble'", mend=mend)
    return found, dict.fromkeys(missing, "weights not here ('milo-restore assets fetch NAME')") | ABSENT


def _known() -> str:
    return f"ensemble, {', '.join(MEMBERS)}"


def _read_maps(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"cannot be read ({error})", where=path, mend="fit_maps writes such files") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("members"), dict):
        raise DataError(f"is not in the format {FORMAT!r}", where=path, mend="fit_maps writes such files")
    return content["members"]


def _map_of(member: Member, known: Mapping[str, Any], path: Path) -> MosMap:
    """The saved map of a member, made with its very weights."""
    if member.name not in known:
        have = ", ".join(known)
        raise DataError(f"holds no map of {member.name}, only of {have}", where=path, mend="Fit the maps again")
    try:
        sha256, saved = known[member.name]["sha256"], known[member.name]["map"]
        beta = tuple(float(b) for b in saved["beta"]) if saved["kind"] == "logistic" else None
        if saved["kind"] not in (OWN_SCALER, "logistic"):
            raise ValueError(f"unknown kind {saved['kind']!r}")
        if beta is not None and (len(beta) != 4 or not all(map(math.isfinite, beta)) or beta[3] == 0):
            raise ValueError(f"beta {beta} are not four finite numbers with a width")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the map of {member.name} is damaged ({error!r})", where=path) from error
    if sha256 != member.sha256:
        what = f"was made with other weights of {member.name}: sha256 {sha256[:16]}, here {member.sha256[:16]}"
        raise WeightsError(what, where=path, mend="Fit the maps again")
    return MosMap(saved["kind"], beta, saved.get("dataset"), saved.get("split"), saved.get("pairs"))
