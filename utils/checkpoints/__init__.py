"""Models on disk and in use.

Building them and checkpoints (checkpoint), untrusted files (tensor_files), device, precision and compilation (compute),
sampling, and conversion (from_diffusers, to_diffusers, to_onnx).
"""
