"""The error of a file that does not fit, and the note about one that is made to."""


class CheckpointError(ValueError):
    """A checkpoint's file is missing, damaged or does not fit; the text names file and tensor."""


class CheckpointNote(UserWarning):
    """A checkpoint is read otherwise than its files say; the text says how, and why."""
