"""Files that cannot be trained on: named once, passed over, the same on resume and on any number of workers."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from conftest import run_two_processes
from PIL import Image
from safetensors.torch import load_file
from train_tiny import Tiny, l1, settings

from milo_restore.data import NoisyPatches, load_collection
from milo_restore.data.degraded_sets import DegradedData, training_pairs
from milo_restore.errors import DataError
from milo_restore.files.quarantine import QUARANTINE, Fault, Quarantine, as_lines, read_faults
from milo_restore.teach.denoising_errors import WithDenoisingErrors
from milo_restore.teach.pairs import DistortedPairs
from milo_restore.train import fit
from milo_restore.train.settings import Stage

IMAGES = 40
STAGES = (Stage(20, 16, 4),)  # two epochs


def photographs(folder, bad=(7, 23), small=()):
    """A folder of small pictures; some are cut short, or too small for a patch."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(IMAGES):
        side = 9 if number in small else 20
        path = folder / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (side, 22, 3), dtype=np.uint8)).save(path)
        if number in bad:
            path.write_bytes(path.read_bytes()[:200])
    return folder


def pairs_of(folder, output, resume=None, **changes):
    data = DegradedData(train=(str(folder),), degradation="noise", **{"in_memory": False, **changes})
    return training_pairs(data, 4, quarantine=Quarantine.of_run(output, resume), home=output, resume=resume is not None)


def train(folder, output, resume=None, until=None, data=None, **changes):
    run = settings(stages=STAGES, checkpoint_every=5, keep_checkpoints=None, learning_rate=1e-3, **changes)
    pairs = pairs_of(folder, output, resume) if data is None else data
    images = pairs.source.identity()
    return fit(
        Tiny(dropout=0.0), l1, pairs, run, output, resume=resume, until=until, record={"fixed": {"images": images}}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    photographs(folder / "images", small=(31,))
    assert train(folder / "images", folder / "run").finished
    return folder


def weights(output):
    return load_file(output / "final" / "model.safetensors")


def same(one, other):
    return all(torch.equal(value, weights(other)[key]) for key, value in weights(one).items())


def test_a_run_over_broken_files_finishes_and_names_each_once(whole):
    faults = read_faults(whole / "run" / QUARANTINE)
    assert sorted(fault.path for fault in faults) == [str(whole / "images" / f"{n:02d}.png") for n in (7, 23, 31)]
    reasons = {fault.path[-6:]: fault.reason for fault in faults}
    assert "cannot be read as an image" in reasons["07.png"]
    assert reasons["31.png"] == "a patch of 16 pixels does not fit into 22x9"
    assert all(1 <= fault.step <= 10 for fault in faults)  # in the first epoch
    last = whole / "run" / "checkpoint-000020"
    assert (last / QUARANTINE).read_text() == (whole / "run" / QUARANTINE).read_text()
    assert "quarantine" not in json.loads((last / "state.json").read_text())["fingerprint"]


@pytest.mark.parametrize("mend", [False, True])
def test_a_stopped_run_goes_on_bit_for_bit_whatever_became_of_the_files(whole, tmp_path, mend):
    images, output = tmp_path / "images", tmp_path / "run"
    photographs(images, small=(31,))
    train(images, output, until=11)
    found = [fault.path for fault in read_faults(output / QUARANTINE)]
    assert len(found) == 3
    if mend:
        (images / "00.png").rename(images / "07.png")  # whole now
        (images / "07.png").replace(images / "00.png")
        (images / "23.png").write_bytes((images / "22.png").read_bytes())
    assert train(images, output, resume="latest").finished
    assert same(whole / "run", output)
    assert [fault.path for fault in read_faults(output / QUARANTINE)] == found


def test_workers_change_nothing(whole, tmp_path):
    assert train(whole / "images", tmp_path / "run", workers=2).finished
    assert same(whole / "run", tmp_path / "run")
    assert (tmp_path / "run" / QUARANTINE).read_text() == (whole / "run" / QUARANTINE).read_text()


def test_two_processes_find_what_one_finds(whole):
    run_two_processes("quarantine_worker.py", whole)
    one, two = (read_faults(whole / run / QUARANTINE) for run in ("run", "two"))
    assert one == two
    for key, value in weights(whole / "run").items():
        torch.testing.assert_close(value, weights(whole / "two")[key], rtol=0, atol=1e-5)


def test_above_the_limit_the_run_stops_in_one_line_and_goes_on_with_another(tmp_path):
    images, output = photographs(tmp_path / "images", bad=range(0, 40, 4)), tmp_path / "run"
    with pytest.raises(DataError, match=r"5 of 40 files cannot be trained on, 4 may be so by now: .*\.png \(.*\)") as e:
        train(images, output)
    assert "\n" not in str(e.value)
    assert "training.max_bad_files" in str(e.value)
    assert len(read_faults(output / QUARANTINE)) >= 5
    with pytest.raises(DataError, match="cannot be trained on"):  # and again
        train(images, output, resume="latest")
    assert train(images, output, resume="latest", max_bad_files=0.3).finished
    assert len(read_faults(output / QUARANTINE)) == 10


def test_none_may_be_bad_where_the_limit_is_zero(tmp_path):
    with pytest.raises(DataError, match="1 of 40 files cannot be trained on, 0 may be so by now"):
        train(photographs(tmp_path / "images", bad=[7]), tmp_path / "run", max_bad_files=0)


def test_a_disk_that_is_gone_ends_at_once(tmp_path):
    folder = photographs(tmp_path / "images")
    pairs = pairs_of(folder, tmp_path / "run")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"64 images in a row cannot be trained on.*\.png"):
        pairs[(1, 0, 0, 16)]


def test_images_in_memory_have_the_same_list(tmp_path):
    folder, output = photographs(tmp_path / "images", bad=[7], small=[31]), tmp_path / "run"

    def data(resume):
        quarantine = Quarantine.of_run(output, resume)
        return NoisyPatches(load_collection(str(folder), quarantine=quarantine), sigma=25, quarantine=quarantine)

    def run(resume=None, until=None):
        kept = settings(stages=STAGES, checkpoint_every=5)
        return fit(Tiny(), l1, data(resume), kept, output, resume=resume, until=until)

    assert run(until=12).step == 12
    assert [(fault.path[-6:], fault.step > 0) for fault in read_faults(output / QUARANTINE)] == [
        ("07.png", False),
        ("31.png", True),
    ]
    (folder / "07.png").write_bytes((folder / "08.png").read_bytes())
    assert len(data("latest")) == IMAGES - 1  # what is on the list stays there
    assert run("latest").finished


def test_references_that_milo_learns_from_have_it_too(tmp_path):
    folder, quarantine = photographs(tmp_path / "images", bad=[7, 23]), Quarantine()
    files = sorted(folder.iterdir())
    options = {"one_each": 1, "square": 16, "distortions": (1, 2)}
    pairs = DistortedPairs(files, quarantine=quarantine, **options)
    noisy = WithDenoisingErrors(pairs, 0.5)
    for data in (pairs, copy.deepcopy(noisy)):
        names = [data[(1, position, position, 16)]["name"][:6] for position in range(IMAGES)]
        assert not {"07.png", "23.png"} & set(names)
        assert all(data.quarantine.holds(str(files[number])) for number in (7, 23))
    alone = DistortedPairs(files, **options)
    with pytest.raises(DataError, match=r"(07|23)\.png: cannot be read"):
        [alone[(1, position, position, 16)] for position in range(IMAGES)]


def test_a_torn_last_line_is_left_out_and_limits_are_shares(tmp_path):
    faults = [Fault("a.png", "is gone", 0), Fault("b\n.png", "ends", 3)]
    (tmp_path / QUARANTINE).write_text(as_lines(faults) + '{"path": "c')
    assert read_faults(tmp_path / QUARANTINE) == faults
    with pytest.raises(ValueError, match="max_bad_files is a share"):
        settings(max_bad_files=5)
