"""`PYTHONPATH=tests python -m record_crashes --seeds 0:200`: the campaign, of which the tests play a twentieth."""

import sys

from record_crashes.crashes import main

sys.exit(main())
