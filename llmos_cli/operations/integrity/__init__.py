"""What fsck looks at and how each thing is told, put back or given up: checkpoints, refs, logs, what is sealed, and what a remote has."""
