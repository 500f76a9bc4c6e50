"""Everything but the mathematics. The caches of other libraries lie with the data, not in the user's home."""

import os
import signal
import sys

# Set before the libraries are imported, unless the user has set them.
os.environ.setdefault("MPLCONFIGDIR", os.path.join("data", "cache", "matplotlib"))
os.environ.setdefault("TORCH_HOME", os.path.join("data", "cache", "torch"))

# While a script of this project imports PyTorch, which takes seconds, Ctrl-C ends it without a traceback; unless a
# shell that runs it in the background has it ignored.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPTS = {os.path.join(ROOT, f"{name}.py") for name in ("train", "distill", "sample", "evaluate", "bench", "convert")}
if os.path.abspath(sys.argv[0]) in SCRIPTS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
