"""The plumbing. What other libraries want to keep between runs is kept with the data, not in the user's home."""

import os

# Before the libraries are imported; whoever has set these otherwise, meant it.
os.environ.setdefault("MPLCONFIGDIR", os.path.join("data", "cache", "matplotlib"))
os.environ.setdefault("TORCH_HOME", os.path.join("data", "cache", "torch"))
