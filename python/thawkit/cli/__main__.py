"""``python -m thawkit.cli``."""

import sys

from thawkit.cli import main

sys.exit(main())
