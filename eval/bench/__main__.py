"""`python -m eval.bench`: the bench of the core."""

import sys

from .core import main

sys.exit(main())
