"""Loading, saving and describing models; importing this package registers our small architectures with transformers."""
