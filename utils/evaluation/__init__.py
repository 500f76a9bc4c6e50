"""Quality: samples and their features (evaluation), metrics, the classifier, results.json (results), and the figures."""
