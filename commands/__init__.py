"""One file, one subcommand: words only. Each parses, calls one operation and shows one dataclass."""
