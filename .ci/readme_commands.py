"""Executes the shell blocks of README.md that follow a line `<!-- ci -->`, in order and in one shell.

What the README tells people to type has to work. Stops at the first command that fails.
"""

import re
import subprocess
import sys
from pathlib import Path


def marked_blocks(text: str) -> list[str]:
    return re.findall(r"^<!-- ci -->\n```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def main() -> int:
    blocks = marked_blocks(Path("README.md").read_text())
    if not blocks:
        print("README.md has no shell block marked <!-- ci -->", file=sys.stderr)
        return 1
    # the trap shows each command before its output, as -x would, but not those inside the activation script
    script = "set -eo pipefail\ntrap 'echo \"+ $BASH_COMMAND\"' DEBUG\n" + "\n".join(blocks)
    return subprocess.run(["bash", "-c", script], stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
