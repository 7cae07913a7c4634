"""The answers of a server: a ledger whose faults are errors for the user of `--rollouts`."""

import errno
from pathlib import Path

from trainer.data.errors import DataError
from trainer.storage import ledger
from trainer.storage.ledger import Entry, LedgerLineError
from trainer.storage.lock import LockedError


class Ledger(ledger.Ledger):
    """As `trainer.storage.ledger.Ledger`. Raises DataError for a ledger in use, a line that is not an entry, and a file
    that cannot be read or written."""

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path)
        except LockedError:
            raise DataError(
                f"{path} is in use by another process", where=str(path), allowed="wait for it, or use another --ledger"
            ) from None
        except LedgerLineError as error:
            where, allowed = f"{path}, line {error.line}", "remove the line, or use another --ledger"
            raise DataError(str(error), where=where, value=error.text, allowed=allowed) from error
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", where=str(path), allowed="use another --ledger") from error

    def add(self, key: str, entry: Entry) -> None:
        try:
            super().add(key, entry)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DataError(
                f"{self.path}: no space left on the device", where=str(self.path), allowed="free some space"
            ) from error
