"""Our small architectures: PreTrainedModel classes, one file each."""
