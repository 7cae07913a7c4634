from parallel.errors import UserError


class UpcycleError(UserError, ValueError):
    """An expansion that cannot be made; the message is one line for the user."""
