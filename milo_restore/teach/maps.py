"""Maps from a teacher's raw values to MOS, fitted on people's opinions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from milo_restore.data.images import read_image, to_tensor
from milo_restore.errors import DataError
from milo_restore.metric.ensemble import HIGHEST_MOS, Member, MosMap, PseudoMOS
from milo_restore.opinions.datasets import OpinionPair
from milo_restore.opinions.logistic import fit_logistic


def fit_maps(
    names: str | Sequence[str],
    pairs: Sequence[OpinionPair],
    path: str | Path,
    *,
    dataset: str = "kadid10k",
    split: str = "kadid-train",
    device: str | torch.device = "cpu",
) -> PseudoMOS:
    """Fit each member's logistic from raw value to opinion, and save the teacher so mapped.

    Args:
        names: the members, as in `PseudoMOS.from_names`.
        pairs: opinions of KADID-10k's training split, MOS in [1, 5], higher is better; never of its test split.
        path: the JSON file to write.
        dataset: where the pairs are from, for the file.
        split: which part of it they are, for the file.
        device: where the metrics run.

    Returns:
        The teacher with the fitted maps.

    Raises:
        DataError: opinions that are no MOS in [0, 5], a fit that did not converge or that gives worse images a higher
            MOS, or an unreadable image. Nothing is saved then.
        ConfigError: as in `PseudoMOS.from_names`, as is WeightsError.
    """
    for pair in pairs:
        if not pair.higher_better or not 0 <= pair.score <= HIGHEST_MOS:
            mend = "Fit on KADID-10k, or turn and scale the opinions first"
            raise DataError(f"{pair.score:g} is no MOS in [0, 5], higher is better", where=pair.distorted, mend=mend)
    teacher = PseudoMOS.from_names(names).to(device)
    raw = _raw_values(teacher.members, pairs, torch.device(device))
    opinions = [pair.score for pair in pairs]
    members = []
    for member in teacher.members:
        beta = _fit(member, raw[member.name], opinions, f"{member.name} on {dataset} {split}")
        members.append(Member(member.name, member.metric, MosMap("logistic", beta, dataset, split, len(pairs))))
    fitted = PseudoMOS(members, teacher.absent)
    fitted.save(path)
    return fitted


def _fit(
    member: Member, raw: Sequence[float], opinions: Sequence[float], where: str
) -> tuple[float, float, float, float]:
    fit = fit_logistic(raw, opinions)
    if not fit.converged:
        mend = "Use more pairs, of all distortions and levels, or the map 'own-scaler'"
        raise DataError(f"the logistic fit did not converge ({fit.reason})", where=where, mend=mend)
    if (fit.beta[0] > fit.beta[1]) != member.metric.higher_is_better:
        mend = "Check that opinions and images belong together"
        raise DataError("the fitted logistic gives worse images a higher MOS", where=where, mend=mend)
    return fit.beta


@torch.no_grad()
def _raw_values(
    members: Sequence[Member], pairs: Sequence[OpinionPair], device: torch.device
) -> dict[str, list[float]]:
    raw: dict[str, list[float]] = {member.name: [] for member in members}
    for pair in tqdm(pairs, desc="scoring opinion pairs", unit="pair", disable=None, leave=False):
        image, reference = (to_tensor(read_image(p))[None].to(device) for p in (pair.distorted, pair.reference))
        for member in members:
            raw[member.name].append(float(member.metric(image, reference=reference)))
    return raw
