"""The step test: ways of one length, and less error left where a loss points at what is visible."""

from __future__ import annotations

import pytest
import torch

from milo_restore import LatentMILO
from milo_restore.teach.step_test import latent_losses, left_over, walk


@pytest.fixture
def ends():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(2, 4, 16, 16, generator=generator)
    return reference + 0.3 * torch.randn(2, 4, 16, 16, generator=generator), reference


def test_mse_walks_straight_and_all_losses_walk_as_far(ends):
    latents, reference = ends
    straight = walk(latent_losses(LatentMILO("mini"))["mse"], latents, reference, share=0.4)
    torch.testing.assert_close(straight, latents + 0.4 * (reference - latents))
    distance = (latents - reference).flatten(1).norm(dim=1)
    for loss in latent_losses(LatentMILO("mini")).values():
        end = walk(loss, latents, reference, share=0.4, steps=1)
        torch.testing.assert_close((end - latents).flatten(1).norm(dim=1), 0.4 * distance)


def test_a_loss_that_sees_what_the_judge_sees_leaves_less(ends):
    """Latents are the image here: its left half is wrong where nothing is visible, by a judge that sees the right."""
    image = torch.full((1, 3, 32, 32), 0.5)
    start = image + 0.1 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    right = (torch.arange(32) >= 16).float().expand(1, 1, 32, 32)

    def judge(image, reference):
        return (right * (image - reference).abs()).mean((1, 2, 3))

    losses = {
        "l1": lambda latents, reference: (latents - reference).abs().mean((1, 2, 3)),
        "seen": lambda latents, reference: (right * (latents - reference).abs()).mean((1, 2, 3)),
    }
    left = left_over(losses, start, image, image, lambda latents: latents, judge)
    assert left["seen"].item() < left["l1"].item() - 0.05 < 1


def test_masks_of_the_losses_are_the_metrics(ends):
    metric = LatentMILO("mini")
    m, e = metric.mask(*ends) / 4, ends[0] - ends[1]
    values = {name: loss(*ends) for name, loss in latent_losses(metric).items()}
    torch.testing.assert_close(values["milo"], metric(*ends) / 4)
    torch.testing.assert_close(values["milo-mse"], (m * e**2).mean((1, 2, 3)))
    torch.testing.assert_close(values["milo-mse-root"], (m.sqrt() * e**2).mean((1, 2, 3)))
