"""Names of substances as a running text writes them: in lower case, in direct order, with a capital where they open a
sentence.
"""

import re
from functools import lru_cache

# Parts of a name that keep their case and are skipped when a capital is set: "sec-butyl" becomes "sec-Butyl".
PREFIX = r"sec|tert|cis|trans|alpha|beta|gamma|delta|epsilon|omega|meso|myo|endo|exo|syn|anti|ortho|meta|para|rac|ent"
CAPITAL_WORD = re.compile(r"(?<![A-Za-z])(?:[A-Z](?=[a-z]{2})|Di(?=[-(\[]))")
PROPER = re.compile(r"\b(?:Red|Blue|Green|Purple|Yellow|Violet|Orange|Brown|Black)\b|'s\b|C\.I\.|No\.")
INVERTED = re.compile(r"^(.*[^,]), (.+)$")
STEREO = re.compile(r"^[(\[].*[)\]]-?$|^(?:DL|D|L|\([+-]\)|\+|-)-?$")  # "(3R)-", "[1R-(1α,2β)]", "DL"
FIRST_WORD = re.compile(rf"(?<![A-Za-z])(?!(?:{PREFIX})[-,])[a-z]{{2,}}")
SKIPPED = re.compile(rf"(?:[^A-Za-z]|(?<![A-Za-z])(?:{PREFIX}|DL|\d+H|[A-Za-z])(?=['\d,()\[\]-]))*")
# Of n-propyl, the n may mean "normal", and of n-type it is a name.
NORMAL = (
    "prop|but|pent|hex|hept|oct|non|dec|undec|dodec|tridec|tetradec|pentadec|hexadec|octadec|eicos|docos|amyl|alk|"
    "capr|valer|laur|myrist|palmit|stear|cetyl|tri|tetra|type|paraff|heneicos|heptadec|nonadec|ic|par"
)
L_OR_D = (  # amino acids and sugars
    "alan|argin|asparag|aspart|cyst|glutam|histid|leuc|isoleuc|lys|methion|phenylalan|prol|ser|threon|tryptoph|tyros|"
    "glycer|threit|erythr|phenylgly|cycloser|canavan|homophenyl|homoser|homocyst|allo|valin|gluc|galact|mann|fruct|rib|xyl|arabin|sorb|gulon|rhamn|fuc|lact|tart|ornith|norleuc|norval|carnit|ascorb"
)
AMIDE = re.compile(r"n-\S*yl\S*(?:amide|imide|aniline|anilide)$")  # an n is a locant before what these carry
LOST_CAPITAL = re.compile(  # in a name in lower case; the first line lets most places fail at once
    r"(?:(?=[ndlhiv])|(?<=\())(?:"
    rf"(?<![a-z])(?:n'*(?:,n'*)+(?=-)|n(?=,\d)|n'+(?=-)|(?<!di-)(?<!tri-)(?<!\d-)n(?=-(?!(?:{NORMAL})|\d)))|"  # locants
    rf"(?<![^-\s(\[])[dl](?=-(?:{L_OR_D}))|"
    r"(?<=\d)h(?=[-,)])|"  # indicated hydrogen
    r"(?<=alpha-)d(?=-)|(?<=beta-)d(?=-)|(?<![a-z])dl(?=-)|"  # sugars, racemates
    r"(?<=[a-z]\()(?:i{1,3}|iv|vi{0,3})(?=\))|"  # oxidation states
    r"(?<=\()(?:\d*[a-z]?[rsez](?:,\d*[a-z]?[rsez])*)(?=\)-))"  # stereodescriptors, "7as" as "7aS"
)


def in_lower_case(name: str) -> str:
    """`Copper(I) bromide` -> `copper(I) bromide`: without the capitals of a list's entries, with those of locants,
    symbols, formulas and proper names."""
    name = " ".join(name.split())
    return name if PROPER.search(name) else CAPITAL_WORD.sub(lambda found: found[0].lower(), name)


def in_order(name: str) -> str:
    """An index entry in the order of speech: `2-nonanol, (±)-` -> `(±)-2-nonanol`, `glycine, hydrochloride` ->
    `glycine hydrochloride`."""
    while found := INVERTED.match(name):
        parent, rest = found.groups()
        if rest == "basic":
            name = f"{rest} {parent}"
        elif STEREO.match(rest):
            name = f"{rest.removesuffix('-')}-{parent}"
        elif rest.endswith("-"):
            name = f"{rest}{parent}"
        else:
            name = f"{parent} {rest}"
    return name


def with_capitals(name: str) -> str:
    """A name from a list in lower case, with the capitals that are certain: `n,n-dimethyl-1h-indole` ->
    `N,N-dimethyl-1H-indole`, `(2e)-` -> `(2E)-`."""
    name = LOST_CAPITAL.sub(_raised, name)
    return f"N{name[1:]}" if name[:2] == "n-" and ("N-" in name or AMIDE.match(name)) else name


def _raised(found: re.Match[str]) -> str:
    return ",".join(one[:-1] + one[-1].upper() if one[0].isdigit() else one.upper() for one in found[0].split(","))


@lru_cache(4096)  # a record's name is asked for by each of its texts
def opening(name: str) -> str | None:
    """The name as it opens a sentence, `2-butanol` -> `2-Butanol`; None where no capital can be set: `n-hexane`."""
    found = FIRST_WORD.search(name)
    if name[:1].islower() and (found is None or found.start() > 0):
        return None
    if found is None or not SKIPPED.fullmatch(name, 0, found.start()):
        return name if name[:1].isupper() else None
    return name[: found.start()] + found[0].capitalize() + name[found.end() :]
