"""Hand-made answers of SciReasoner's group Bio_Instruction and of its proteins, with their references, 20 a metric."""

from typing import Any

_SIGNS = (
    "Yes.|No.|The result is positive|It is negative|<think>yes</think>no|<think>no|a motif is plausible|nothing is yes"
    "|There is no evidence|I don't know|uncertain|It contains a site|soluble|insoluble|Not found|not present, yes"
    "|<summary>yes<summary>no|It shows binding||display"
)
SIGNS = [(answer, ("positive", "negative", "positive")[n % 3]) for n, answer in enumerate(_SIGNS.split("|"))]

_NUMBERS = (
    "0.5|The value is 1.25.|2|none|-0.75|1 or 2|<think>9</think>3.5|<think>4|<summary>5 <summary> 4.25|at the 5' end: 6"
    "|the 3' end gives 7.123456789|x8|81|350|1200|\u20111.5||9.|12.5 %|1" + "0" * 400
)
_WANTED = [0.4, 1.5, 1.8, 0.2, -1.0, 0.1, 3.0, 2.5, 4.0, 5.5, 7.0, 0.6, 60.0, 44.0, 21.0, -2.0, 0.3, 9.9, 11.0, 8.0]
NUMBERS: list[tuple[str, Any]] = [
    (answer, str(wanted) if n % 2 else wanted)
    for n, (answer, wanted) in enumerate(zip(_NUMBERS.split("|"), _WANTED, strict=True))
]
_GROUPS = (
    "0.1 0.9 0.2|0.3, 0.8 and 0.35|ON: 0.5, OFF: 0.7, ON_OFF: 0.8|0.2 0.1|none|<think>1 2 3</think>0.6 0.5 1.1|1 1 1 1"
    "|<think>0.7 0.4 1.2|0.9 0.2 -1.5|0.15 0.95 0.1||-0.1 0.3 0.4|0.45, 0.55, 0.65|1 0 1|0.25 0.35 0.75|0 1 0|0.7 0.7 0"
    "|0.33333333 0.2 0.1|0.05 0.6 0.5|0.8 0.1 0.9"
)
SWITCHES: list[tuple[str, Any]] = [
    (answer, {"ON": n / 20, "OFF": str(1 - n / 25), "ON_OFF": (n * 7 % 20) / 10})
    for n, answer in enumerate(_GROUPS.split("|"))
]
ENHANCERS: list[tuple[str, Any]] = [
    (answer.rpartition(" ")[0] if n % 4 else answer, {"hk": (n * 3 % 20) / 4, "dev": str(n / 7)})
    for n, answer in enumerate(_GROUPS.split("|"))
]
_LABELS = (
    "m6A|AtoI, m6A|none|No modification was found|It is absent|Psi and Um|m6Am|<think>m1A</think>m5C|<think>m1A||Yes"
    "|m7G and Gm<summary>Cm|I don't know|Am Cm Gm Um|m5U,m5C|m6a|xm6A|Psi|unclear|m1A m7G"
)
_TRUE = "m6A|AtoI|none|none|m7G|Psi,Um|m6Am|m5C|m1A|Cm|m6A,m5U|Cm,Gm|none|Am,Cm,Um|m5U|m6A|m6A|Um,Psi|none|m1A,m7G,AtoI"
LABELS = [*zip(_LABELS.split("|"), _TRUE.split("|"), strict=True)]

_DOES = (
    "It binds ATP.|Catalyzes the hydrolysis of ATP|<think>It binds</think> A kinase<|im_end|>|kinases|"
    "|Transport of ions|so</think>It transports ions across the membrane|unknown"
)
_TOLD = ("It binds ATP and GTP.", "A kinase that catalyzes a reaction<|endoftext|>", "Transports ions")
DESCRIBED = [
    (answer, _TOLD[n % 3])
    for n, answer in enumerate(
        (_DOES.replace("<|", "<\0").replace("|>", "\0>") + "|the cell|DNA binding").split("|") * 2
    )
]
DESCRIBED = [(answer.replace("<\0", "<|").replace("\0>", "|>"), told) for answer, told in DESCRIBED]

_CHAINS = [
    "MKTAYIAKQRQISFVKSHFSRQ",
    "MKTAYIAKQRSFVKSHFSRQ",
    "GGGGGGGG",
    "WWCWW",
    "MKTAYIAKQRQISFVKAAAAAAAAAAAASHFSRQ",
    "ACDEFGHIKLMNPQRSTVWY",
    "YWVTSRQPNMLKIHGFEDCA",
    "M",
    "MKTxx-AYI",
    "HFSRQMKTAYIAK",
]
DESIGNED = [
    (f"<protein>{chain}</protein>", f"<protein>{_CHAINS[n * 3 % 5]}</protein>") for n, chain in enumerate(_CHAINS)
]
DESIGNED = [(answer, wanted) for answer, wanted in DESIGNED if answer != wanted]  # else the most is 100
DESIGNED += [
    ("MKTAYIAKQR", "<protein>MKTAYIAKQRQISFVKSHFSRQ</protein>"),
    ("", "<protein>GGGGGGGG</protein>"),
    ("<think><protein>GG</protein></think><protein>GGA</protein>", "<protein>GGGGGGGG</protein>"),
    ("<protein></protein>", "<protein>WWCWW</protein>"),
    ("so</think> <protein>WCC</protein>", "so <protein>WWCWW</protein>"),
    ("<protein>MK\nTA</protein>", "<protein>MKTA</protein>"),
]
_MORE = [("KTAYIGGGAKQRQ", 0), ("QRFVKS", 1), ("AAGGAA", 2), ("CWWAC", 3), ("SHFSRQ", 4), ("DEFGHI", 0), ("VVV", 1)]
DESIGNED += [(f"<protein>{chain}</protein>", f"<protein>{_CHAINS[n]}</protein>") for chain, n in _MORE]
DESIGNED = DESIGNED[:20]
