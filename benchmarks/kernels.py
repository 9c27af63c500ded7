"""Measure every kernel against plain torch, torch.compile and the packages that do some of the same work.

    python benchmarks/kernels.py [--quick] [--only KERNEL ...] [--budget SECONDS] [--out DIR]

See benchmarks/README.md for what is measured and what the columns mean.
"""

import sys
from pathlib import Path

from harness.run import main

# Some packages look for one of the name of this file: they shall not find it.
sys.path.remove(str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    sys.exit(main())
