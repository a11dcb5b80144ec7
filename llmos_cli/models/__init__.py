"""Loading, saving and describing models; importing this package registers our small architectures with transformers."""

from transformers.utils import logging

from llmos_cli.models import architectures

__all__ = ["architectures"]

# Progress bars are the terminal's business (`ui`), and a model loads faster than one can be read.
logging.disable_progress_bar()
