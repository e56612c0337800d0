"""The error of a file that does not fit."""


class CheckpointError(ValueError):
    """A checkpoint's file is missing, damaged or does not fit; the text names file and tensor."""
