"""The main module of a worker that a program spawned: the program's script again, as multiprocessing would import it.

Distributed BasicSR spawns its data workers. A worker imports the main module under the name ``__mp_main__``; the doors'
preparations come first, without which its imports would fail, and no loss is replaced, as none is computed there.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from milo_restore.doors.script import VARIABLE, make_room

if __name__ == "__mp_main__" and os.environ.get(VARIABLE):
    script = Path(os.environ[VARIABLE])
    make_room(script)
    globals().update(runpy.run_path(str(script), run_name="__mp_main__"))
