"""Sources, fingerprints, tokenising, packing, augmentation."""
