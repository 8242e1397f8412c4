"""`python -m qatflow`."""

import sys

from qatflow.cli import main

sys.exit(main())
