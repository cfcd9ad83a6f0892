"""Tool: `python -m tools.dump` is `snapfs-dump`."""

import sys

from tools.dump.main import main

sys.exit(main())
