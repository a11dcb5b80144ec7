"""The decoding engine, the HTTP interface, and the registry of loaded models."""
