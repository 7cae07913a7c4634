"""Executes the shell blocks that follow a line `<!-- ci -->` in README.md and then in docs/, in one shell.

The pages of docs/ follow in the order of README's links.

What the documents ask a reader to type has to work. Stops at the first command that fails.
"""

import re
import subprocess
import sys
from pathlib import Path


def marked_blocks(text: str) -> list[str]:
    return re.findall(r"^<!-- ci -->\n```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """README.md and the pages of docs/ in the order of README's links. Every page has to be linked."""
    linked = dict.fromkeys(re.findall(r"\]\((docs/[\w.-]+\.md)\)", Path("README.md").read_text()))
    unlinked = {str(path) for path in Path("docs").glob("*.md")} - linked.keys()
    if unlinked:
        sys.exit(f"error: README.md does not link to {', '.join(sorted(unlinked))}")
    return [Path("README.md"), *map(Path, linked)]


def main() -> int:
    lines = ["set -eo pipefail"]
    for page in pages():
        blocks = marked_blocks(page.read_text())
        lines += [f"echo '--- {page}: {len(blocks)} blocks'", *blocks]
    # the trap shows each command before its output, as -x would, but not those inside the activation script
    lines.insert(1, "trap 'echo \"+ $BASH_COMMAND\"' DEBUG")
    return subprocess.run(["bash", "-c", "\n".join(lines)], stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
