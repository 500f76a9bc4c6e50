"""Models on disk and in use.

Building them (build), checkpoints and the reading of untrusted files (checkpoint, torch_file, safetensors_file),
device, precision and compilation (compute), sampling, and conversion (from_diffusers, to_diffusers, to_onnx).
"""
