"""Loading, saving and describing models; importing this package registers our small architectures with transformers."""

from transformers.utils import logging

from llmos_cli.models import architectures

__all__ = ["architectures"]

# The terminal is `ui`'s, and what transformers warns of when loading (missing tensors) is an error here.
logging.disable_progress_bar()
logging.set_verbosity_error()
