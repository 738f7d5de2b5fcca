"""``python -m milo_restore.cli`` is ``milo-restore``, for where the console script is not on the path."""

import sys

from milo_restore.cli import main

if __name__ == "__main__":
    sys.exit(main())
