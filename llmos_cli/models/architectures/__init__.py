"""Our small architectures: PreTrainedModel classes, one file each, registered with transformers' Auto classes."""

from llmos_cli.models.architectures import bag, cnn, lstm, mlp

__all__ = ["bag", "cnn", "lstm", "mlp"]
