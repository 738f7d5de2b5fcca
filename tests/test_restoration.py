"""The evaluation of restorers: input, cleaned image and output on one scale, and the picture of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from milo_restore.data import to_uint8
from milo_restore.errors import DataError, NumericsError
from milo_restore.measure import restoration
from milo_restore.show.grid import heat_map


def pairs_of(count=3):
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(count)]
    shift = [torch.from_numpy(image).permute(2, 0, 1) / 255 + 16 / 255 for image in images]
    made = enumerate(zip(shift, images))
    return [restoration.RestorationPair(f"{number}.png", degraded, image) for number, (degraded, image) in made]


def halved(pairs):
    """A restorer that takes away half of the error, and whose cleaner takes away a quarter."""

    def restore(image, number):
        target = torch.from_numpy(pairs[number].target).permute(2, 0, 1)[None] / 255
        return image + (target - image) / 2, image + (target - image) / 4

    return restore


def test_input_cleaner_and_output_are_measured_alike():
    pairs = pairs_of()
    scores = restoration.evaluate_restorer(halved(pairs), pairs, progress=False)
    assert [row["name"] for row in scores.rows] == ["0.png", "1.png", "2.png"]
    means = scores.means()
    assert means["output_psnr"] - means["input_psnr"] == pytest.approx(20 * np.log10(2), abs=0.3)
    assert means["cleaner_psnr"] - means["input_psnr"] == pytest.approx(20 * np.log10(4 / 3), abs=0.3)
    assert "output_milo" not in means
    table = restoration.restoration_table([("three", scores)])
    assert f"{means['input_psnr']:.2f} -> {means['cleaner_psnr']:.2f} -> {means['output_psnr']:.2f}" in table
    targets = [torch.from_numpy(pair.target).permute(2, 0, 1)[None] / 255 for pair in pairs]
    perfect = restoration.evaluate_restorer(lambda image, number: (targets[number], image), pairs)
    assert perfect.as_dict()["means"]["output_psnr"] is None


def test_a_diverged_restorer_is_named():
    pairs = pairs_of()
    with pytest.raises(NumericsError, match="0.png"):
        restoration.evaluate_restorer(lambda image, number: (image * float("nan"), image), pairs)
    with pytest.raises(DataError, match="0.png.*came out as"):
        restoration.evaluate_restorer(lambda image, number: (image[..., :-1], image), pairs)


def test_the_picture_has_five_columns_and_the_masks_own_cells():
    pairs = pairs_of(2)
    masks = iter([torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4)])
    picture = restoration.restoration_samples(halved(pairs), pairs, lambda output, target: next(masks), "mask")
    rows = (picture[24:48], picture[52:76])  # under the titles, with a gap between
    for value, row in zip((0.0, 1.0), rows):
        colour = heat_map(torch.full((1, 1), value), 1.0)[0, 0]
        assert (row == colour).all(-1).sum() >= 24 * 32
    shown = {tuple(image.reshape(-1)) for pair in pairs for image in (pair.target, to_uint8(pair.degraded))}
    places = [picture[top : top + 24, left : left + 32] for top in (24, 52) for left in range(picture.shape[1] - 32)]
    assert shown <= {tuple(place.reshape(-1)) for place in places}
