"""Model, command: see `report`."""

import sys

from tests.model.report import main

if __name__ == '__main__':
    sys.exit(main())
