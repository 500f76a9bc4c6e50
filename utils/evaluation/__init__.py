"""Quality: samples and their features (evaluation), metrics, the classifier, results.json, the table and figures."""
