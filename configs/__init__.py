"""The YAML that `llmos init` copies out: one folder per template."""
