"""Reports of long work."""

from trainer.storage.progress import Progress, print_line


def test_a_report_is_one_line(capsys):
    print_line(Progress("corpora", detail="building runs/toy"))
    print_line(Progress("counting", 47, 94, "layers", detail="layer 46"))
    assert capsys.readouterr().err == "corpora: building runs/toy\ncounting: 47 of 94 layers (50.0%), layer 46\n"


def test_what_this_start_made_is_without_what_was_kept():
    assert Progress("writing", 7, 10, kept=3).made == 4
