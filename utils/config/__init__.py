"""The configuration: reading it, and its keys (schema)."""
