"""Everything but the mathematics. The caches of other libraries lie with the data, not in the user's home."""

import os

# Set before the libraries are imported, unless the user has set them.
os.environ.setdefault("MPLCONFIGDIR", os.path.join("data", "cache", "matplotlib"))
os.environ.setdefault("TORCH_HOME", os.path.join("data", "cache", "torch"))
