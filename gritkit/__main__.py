"""``python -m gritkit`` is the command ``gritkit``. It knows nothing else."""

import sys

from gritkit.cli import main

sys.exit(main())
