from parallel.errors import UserError


class UpcycleError(UserError):
    """An expansion that cannot be made; `where` is the option or the file to change."""
