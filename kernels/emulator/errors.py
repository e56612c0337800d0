"""Errors of the emulator. Every message names what was wrong, what was seen and what would do."""


class EmulatorError(Exception):
    """Base class of everything the emulator raises about a kernel."""


class LanguageError(EmulatorError):
    """The source uses Python that the NKI front end of that version refuses."""

    def __init__(self, rule: str, message: str):
        super().__init__(f"[{rule}] {message}")
        self.rule = rule


class SignatureError(EmulatorError):
    """A call to `nki.*` with a name or arguments that this version does not have."""


class RuleError(EmulatorError):
    """A documented constraint of the machine is broken; `rule` is its key in `rules.RULES`."""

    def __init__(self, rule: str, message: str):
        super().__init__(f"[{rule}] {message}")
        self.rule = rule


class UninitializedError(RuleError):
    """A read of storage that nothing has written."""


class IsaWarning(UserWarning):
    """What no page forbids and no published kernel does; of the strictness "isa" only."""


class NotModelledError(EmulatorError):
    """Documented, but this emulator has no model of it, so it refuses instead of guessing."""
