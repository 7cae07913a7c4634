"""A display gets every change, and distinguishes this start's work from an earlier one."""

from trainer.storage.progress import Progress


class Seen(Progress):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int, int]] = []

    def show(self) -> None:
        self.seen.append((self.stage, self.done, self.total, self.kept, self.made))


def test_every_change_is_shown_with_its_stage() -> None:
    progress = Seen()
    progress.start("reading", 20, speed_unit="tokens", kept=4)
    progress.advance(1, made=30)
    progress.keep(5)
    progress.advance(10, made=50)
    progress.start("writing", 7)
    progress.advance(7)
    assert progress.seen == [
        ("reading", 5, 20, 4, 30),
        ("reading", 10, 20, 9, 30),
        ("reading", 20, 20, 9, 80),
        ("writing", 7, 7, 0, 7),
    ]
