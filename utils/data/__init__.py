"""Training and test images: data sets, batches, folders and zips, decoding, and the cache of decoded images."""
