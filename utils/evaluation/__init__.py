"""Quality: samples and their features (evaluation), metrics, the classifier, results.json, figures, sample files."""
