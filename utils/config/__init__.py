"""The configuration: reading the YAML (yaml_file, reading), and its keys (schema)."""
