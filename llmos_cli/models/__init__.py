"""Loading, saving and describing models; importing this package registers our small architectures with transformers."""

from llmos_cli.models import architectures

__all__ = ["architectures"]
