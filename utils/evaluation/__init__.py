"""Quality: samples and their features (evaluation), metrics, the classifier, results.json, table, figures, sample files."""
