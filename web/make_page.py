"""Copies the page, with what npm has installed, to output/page, a folder for any web server: python -m web.make_page"""

import shutil
import sys
from pathlib import Path

WEB = Path(__file__).parent
RUNTIME = [
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
]

runtime = WEB / "node_modules/onnxruntime-web/dist"
if not runtime.exists():
    sys.exit(f"{runtime}: missing; first: npm ci --prefix web --ignore-scripts")
page = Path(sys.argv[1] if len(sys.argv) > 1 else "output/page")
shutil.rmtree(page, ignore_errors=True)
ignored = shutil.ignore_patterns("node_modules", "*.py", "__pycache__", "package*.json")
shutil.copytree(WEB, page, ignore=ignored, copy_function=shutil.copy)  # with new times, for make
(page / "ort").mkdir()
for name in RUNTIME:  # some servers do not know .mjs, so these files are called .js
    shutil.copy(runtime / name, page / "ort" / name.replace(".mjs", ".js"))
