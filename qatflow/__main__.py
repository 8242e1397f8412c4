"""`python -m qatflow`."""

import sys

from qatflow.door.cli import main

sys.exit(main())
