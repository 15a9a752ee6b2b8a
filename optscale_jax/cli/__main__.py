"""`python -m optscale_jax.cli`: what the console script `optscale` is."""

import sys

from optscale_jax.cli.console import main

sys.exit(main())
