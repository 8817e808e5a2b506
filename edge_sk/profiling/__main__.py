"""``python -m edge_sk.profiling``."""

import sys

from edge_sk.profiling.command import main

sys.exit(main())
