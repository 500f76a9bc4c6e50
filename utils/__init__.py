"""Everything but the mathematics. The caches of other libraries are kept with the data, not in the home directory."""

import os

os.environ.setdefault("MPLCONFIGDIR", os.path.join("data", "cache", "matplotlib"))
os.environ.setdefault("TORCH_HOME", os.path.join("data", "cache", "torch"))
