"""Measure every kernel against plain torch, torch.compile and the packages that do some of the same work.

    python benchmarks/kernels.py [--quick] [--only KERNEL ...] [--budget SECONDS] [--out DIR]

See benchmarks/README.md for what is measured and what the columns mean.
"""

import sys

from harness.run import main

if __name__ == "__main__":
    sys.exit(main())
