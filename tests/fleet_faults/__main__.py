"""`PYTHONPATH=src:tests python -m fleet_faults --seeds 0:300`: the campaign, of which the tests play a twentieth."""

import sys

from fleet_faults.campaign import main

sys.exit(main())
