"""How good pictures are: FID and KID (metrics), by the features of a classifier, kept in results.json, and shown."""
