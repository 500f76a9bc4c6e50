"""Training and test images: data sets, sets and batches (images), folders, and their cache (folder_cache)."""
