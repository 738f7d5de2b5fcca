"""Several processes of ``accelerate launch -m milo_restore.cli restore`` share a folder."""

from __future__ import annotations

import json

import numpy as np
from conftest import run_two_processes
from PIL import Image
from skimage.data import astronaut

from milo_restore.cli import main
from milo_restore.data import read_image


def test_two_processes_share_a_folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(astronaut()[40 * number :][:40, 200:232]).save(folder / f"{number}.png")
    (tmp_path / "half").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "half" / "3.png")
    run_two_processes("restore_worker.py", tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["refused"] == second["refused"] == 2
    for found in (first, second):
        code, written, _, errors = found["there"]
        assert (code, written) == (2, [])
        assert "1 of 5 results are there already: 3.png" in errors
        code, _, printed, errors = found["full"]  # met by the second, told by both
        assert (code, printed) == (2, "")
        assert errors.splitlines()[-1].endswith("out/1_0.png: cannot be written. Results made so far are whole; "
                                                "--resume goes on")  # fmt: skip
    assert first["full"][1] == [[f"{image}_{sample}.png", 0, 2] for image in (0, 2, 4) for sample in (0, 1)]
    assert second["full"][1] == []
    assert first["resumed"][:2] == [0, [[f"1_{sample}.png", 0, 2] for sample in (0, 1)]]
    assert second["resumed"][:2] == [0, [[f"3_{sample}.png", 1, 2] for sample in (0, 1)]]
    assert first["resumed"][2] == f"2 images restored: {tmp_path / 'out'}\n"
    assert second["resumed"][2] == ""  # one process speaks
    assert "the tiny world" in first["resumed"][3]
    assert "the tiny world" not in second["resumed"][3]
    assert first["again"][:3] == [0, [], f"nothing to do: all results are in {tmp_path / 'out'}\n"]
    assert second["again"][:3] == [0, [], ""]
    alone = ["restore", "--task", "denoise", "--input", str(folder), "--output", str(tmp_path / "alone")]
    assert main([*alone, "--samples", "2", "--steps", "1", "--guidance", "1", "--device", "cpu"]) == 0
    for path in (tmp_path / "alone").glob("*.png"):
        assert np.abs(read_image(path).astype(int) - read_image(tmp_path / "out" / path.name)).max() <= 1
