"""What runs inside a peer's own environment: one file each, `contract.py` and nothing else of this repository."""
