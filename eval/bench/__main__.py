"""`python -m eval.bench`: the bench of the core."""

import sys

from eval.bench.core import main

sys.exit(main())
