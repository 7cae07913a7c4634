"""Lines that are written past a progress bar leave no part of it on the screen."""

import os
import pty
import subprocess
import sys

PROGRAM = """
import os
from parallel.health.terminal import leave_terminal, write_line
os.write(1, b"a bar at the cursor")
write_line("error: rank 1 died")
os.write(1, b"a bar again")
leave_terminal()
"""


def test_a_line_takes_the_place_of_the_bar():
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", PROGRAM], stdout=theirs, stderr=theirs, check=True)
        written = os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
    assert written == (b"a bar at the cursor\r\x1b[2Kerror: rank 1 died\r\na bar again\r\x1b[2K\x1b[?25h")


def test_elsewhere_there_are_no_control_codes():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"a bar at the cursora bar again", b"error: rank 1 died\n")
