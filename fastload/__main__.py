"""`python -m fastload`, the form that torchrun takes: torchrun --nproc-per-node 2 -m fastload build-subset …"""

import sys

from fastload.command.cli import main

sys.exit(main())
