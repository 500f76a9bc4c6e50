"""Models on disk and in use: checkpoints, untrusted files, device and precision, sampling, conversion."""
