"""Everything but the mathematics. The caches of other libraries are kept with the data, not in the home directory."""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 (before an import fails)
    print(f"{sys.argv[0]}: error: needs Python 3.11 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
    sys.exit(2)
os.environ.setdefault("MPLCONFIGDIR", os.path.join("data", "cache", "matplotlib"))
os.environ.setdefault("TORCH_HOME", os.path.join("data", "cache", "torch"))
