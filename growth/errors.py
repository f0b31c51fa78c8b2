"""The one kind of error that is the caller's to mend."""


class InputError(ValueError):
    """Something given is wrong.

    The message says what, what it is, and what would be accepted. Anything else that is raised is a
    defect of this package, or of the machine.
    """
