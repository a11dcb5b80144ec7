"""From any source to batches: splits of rows, their fingerprints, tokens packed and mapped into memory."""
