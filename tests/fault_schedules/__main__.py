"""`make soak`, or `PYTHONPATH=tests python -m fault_schedules --verbose SEED`."""

import sys

from fault_schedules.faults import main

sys.exit(main())
