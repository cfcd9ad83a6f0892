"""The command line and the mount helper over the fakes: python fake_snapfs.py [--helper] ARGUMENTS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import service_fakes as fakes

if __name__ == '__main__':
    fakes.install()
    if sys.argv[1:2] == ['--helper']:
        from snapfs.cli.mount_helper import main

        sys.exit(main(sys.argv[2:]))
    from snapfs.cli.main import main

    sys.exit(main(sys.argv[1:]))
