"""The built-in model of subjects on captions of figures: those of the HTML in Debian's documentation packages.

    apt-get download gimp-help-en grass-doc python-dipy-doc python-mdanalysis-doc python-astropy-doc
    python -m tests.bench.routing_captions other=gimp-help-en_*.deb earth=grass-doc_*.deb life=python-dipy-doc_*.deb \
        chemistry=python-mdanalysis-doc_*.deb physics=python-astropy-doc_*.deb

The captions come without the text around the figures. Packages are read with dpkg-deb, not installed.
"""

import gzip
import html
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from trainer.corpora.captions.routing.fit import Labelled
from trainer.corpora.captions.routing.measure import measure, table
from trainer.corpora.captions.routing.model import TextModel

FORMS = [re.compile(form, re.DOTALL) for form in (
    r"<figcaption[^>]*>(.*?)</figcaption>", r'<(?:p|div|span) class="caption(?:-text)?"[^>]*>(.*?)</(?:p|div|span)>',
    r"<i>Fig(?:ure)?[.: ](.*?)</i>", r'<p class="title">.{0,40}?Figure.*?</(?:b|strong)>',
)]  # fmt: skip
WORDS, MOST = 5, 200  # of a caption; captions of a package


def captions_of(package: Path) -> list[str]:
    """The first MOST different captions of WORDS words or more, in the order of the package's files."""
    found: dict[str, None] = {}
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            if member.isfile() and re.search(r"\.html?(\.gz)?$", member.name):
                raw = archive.extractfile(member).read()
                page = (gzip.decompress(raw) if member.name.endswith("gz") else raw).decode("utf-8", "replace")
                for form in FORMS:
                    for match in form.finditer(page):
                        text = html.unescape(re.sub(r"<[^>]+>", " ", match[match.lastindex or 0]))
                        if len(words := text.replace("¶", " ").split()) >= WORDS:
                            found[" ".join(words)] = None
    return [*found][:MOST]


def main() -> None:
    texts = []
    for word in sys.argv[1:]:
        subject, _, path = word.partition("=")
        texts += [Labelled(Path(path).name.split("_")[0], subject, text, "") for text in captions_of(Path(path))]
    for size in (1, 8):
        print(f"\n{size} captions together as a document's\n\n{table(measure(TextModel.load(), texts, size))}")


if __name__ == "__main__":
    main()
