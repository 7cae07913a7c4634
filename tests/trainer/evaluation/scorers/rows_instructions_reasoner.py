"""Hand-made answers of SciReasoner's group Mol_Instructions with their references, 20 a metric."""

_PAIRS = "(aspirin, ulcer)|(Aspirin, Ulcer), (a, b)|aspirin, ulcer|none|"
_PAIRS += "|(aspirin, ulcer) and (lead, anaemia)|(ulcer, aspirin)"
_PAIRS += "|Answer: (lead, anaemia)|Response: (aspirin, ulcer)|<think>(a, b)</think>(aspirin, ulcer)"
_PAIRS += "|x</think> (lead, anaemia)"
_PAIRS += "|I would say that (lead, anaemia)|((aspirin, ulcer))|(aspirin, ulcer|()"
_PAIRS += "|(aspirin, ulcer)(aspirin, ulcer)|( aspirin, ulcer)"
_PAIRS += "|(lead, anaemia)<|im_end|>|lead, anaemia)|(aspirin,ulcer)"
_PLACES = ["(aspirin, ulcer)", "(aspirin, ulcer), (lead, anaemia)"]
PAIRS = [(answer, _PLACES[place % 2]) for place, answer in enumerate(_PAIRS.replace("<|im_end|>", "\0").split("|"))]
PAIRS = [(answer.replace("\0", "<|im_end|>"), reference) for answer, reference in PAIRS]

_NAMES = (
    "aspirin, lead|Aspirin|lead, aspirin, zinc||zinc|aspirin,lead|aspirin,  lead|Answer: aspirin|answer: lead, aspirin"
)
_NAMES += "|<think>zinc</think> lead|aspirin, aspirin|lead.|aspirin and lead"
_NAMES += "|I would like to say that lead|lead, |, |zinc, lead"
_NAMES += "|<think>open aspirin, lead|aspirin, lead\n|ASPIRIN, LEAD"
NAMES = [(answer, ("aspirin, lead", "lead")[place % 2]) for place, answer in enumerate(_NAMES.split("|"))]

_TRUTHS = (
    "Yes|no|Maybe.|It may be|it might|yes, and no|I know|nothing|perhaps||Answer: no|<think>yes</think>no|not yet|eyes"
)
_TRUTHS += "|No, yes|Yes.|It is so|maybe no|I would say that yes|might not"
_WANTED = ["Yes, it does.", "No, it does not.", "Maybe, in part."]
TRUTHS = [(answer, _WANTED[place % 3]) for place, answer in enumerate(_TRUTHS.split("|"))]

_LETTERS = "(A) water|B) salt|C|The answer is D .|(B|A|(C) or (D)|no idea|b)||It is A and not B"
_LETTERS += "|Answer: (D)|<think>(A)</think>(B)"
_LETTERS += "|I say C |D)|(E)|A) B)| B|A |x B y"
LETTERS = [(answer, f"({'ABCD'[place % 4]}) so") for place, answer in enumerate(_LETTERS.split("|"))]

_NUMBERS = "0.25|-0.2|It is 0.251 hartree|none|. 5|0. 2 5|1 2|3|-3|0.2500|<think>9</think>0.2|+0.3|e"
_NUMBERS += "|0.25, 0.3|.25|1e-3|-.1||7 %|0.2."
NUMBERS = [(answer, ("0.25", "-0.2", "0.3012")[place % 3]) for place, answer in enumerate(_NUMBERS.split("|"))]

_SMILES = "CCO|OCC|CC|C1CCCCC1|c1ccccc1|C1=CC=CC=C1|not one|C(|[Na+].[Cl-]|CC(=O)O|OC(C)=O|C[C@H](N)O"
_SMILES += "|C[C@@H](N)O|CC(N)O|CCN|O"
MOLECULES = [(f"<SMILES> {one} </SMILES>", "<SMILES> OCC </SMILES>") for one in _SMILES.split("|")[:6]]
MOLECULES += [(f"It is <SMILES>{one}</SMILES>.", "<SMILES> C[C@H](N)O </SMILES>") for one in _SMILES.split("|")[6:]]
MOLECULES += [
    ("CCO", "<SMILES> OCC </SMILES>"),
    ("<SMILES>CC</SMILES> <SMILES>CCO</SMILES>", "<SMILES> OCC </SMILES>"),
    ("<think><SMILES>CC</SMILES></think><SMILES>CCO</SMILES><|im_end|>", "<SMILES> OCC </SMILES>"),
    ("<SMILES>CCO", "<SMILES> OCC </SMILES>"),
]

_TEXTS = "The molecule is an alcohol.|It is an alcohol. It has|an alcohol"
_TEXTS += "|The molecule is a primary alcohol. It is a liquid.|"
_TEXTS += (
    "|.|molecules are alcohols.|<think>The molecule</think>An acid.|The molecule is an alcohol. It is a liquid. And"
)
_TEXTS += "|The molecule is an acid<|im_end|>".replace("|im_end|", "\0")
DESCRIPTIONS = [
    (answer.replace("\0", "|im_end|"), reference)
    for answer in _TEXTS.split("|")
    for reference in ("The molecule is an alcohol.", "It is a primary alcohol and a liquid.")
]
