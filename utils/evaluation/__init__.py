"""Measuring quality: FID and KID (metrics) on the features of a classifier, results.json (results), the report."""
