"""Hand-made answers of SciReasoner's group SmolInstruct with their references, 20 a metric."""

_SMILES = [
    ("OCC", "CCO"),
    ("CC", "CCO"),
    ("C[C@H](N)C(=O)O", "C[C@H](N)C(=O)O"),
    ("C[C@@H](N)C(=O)O", "C[C@H](N)C(=O)O"),
    ("N[C@@H](C)C(=O)O", "C[C@H](N)C(=O)O"),
    ("F/C=C/F", r"F/C=C\F"),
    (r"F\C=C\F", "F/C=C/F"),
    ("[2H]C([2H])O", "CO"),
    ("[Na+].[Cl-]", "[Cl-].[Na+]"),
    ("CCO;CCN", "CCN.CCO"),
    ("CCO.CCO", "CCO"),
    ("C1=CC=CC=C1", "c1ccccc1"),
    ("c1cc[nH]c1", "C1=CNC=C1"),
    ("C[S@](=O)CC", "C[S@@](=O)CC"),
    ("[CH3:1][OH:2]", "CO"),
]
_ODD = [
    ("CCO", "<SMILES> CCO </SMILES>"),
    ("<SMILES> CCO. </SMILES>", "<SMILES> CCO </SMILES>"),
    ("<SMILES> CCO.no </SMILES>", "<SMILES> CCO </SMILES>"),
    ("<think><SMILES>C</SMILES></think>So <SMILES>CCO</SMILES> or <SMILES>CC</SMILES>", "<SMILES> CCO </SMILES>"),
    ("", "<SMILES> CCO </SMILES>"),
]
MOLECULES = [(f"<SMILES> {one} </SMILES>", f"<SMILES> {other} </SMILES>") for one, other in _SMILES] + _ODD

_FORMULAS = [
    "<MOLFORMULA> C2H6O </MOLFORMULA>|C2H6O",
    "<MOLFORMULA> C2OH6 </MOLFORMULA>|C2H6O",
    "The formula is C2H6O|C2H6O",
    "It could be CH4 or C6H6|C6H6",
    "C6H6.|C6H6",
    "|C6H6",
    "<MOLFORMULA></MOLFORMULA> C6H6|C6H6",
    "<MOLFORMULA> C4H12N+ </MOLFORMULA>|C4H12N+",
    "C4H12N+|C4H12N+",
    "<MOLFORMULA> CaO2-2 </MOLFORMULA>|CaO2-2",
    "<MOLFORMULA> Ca(OH)2 </MOLFORMULA>|CaO2H2",
    "[Fe(CN)6]|FeC6N6",
    "<think>C7H8</think>C6H6|C6H6",
    "<think>C6H6|C6H6",
    "<MOLFORMULA> NaCl </MOLFORMULA>|ClNa",
    "<MOLFORMULA>CH4</MOLFORMULA><MOLFORMULA>C6H6</MOLFORMULA>|C6H6",
    "CuSO4·5H2O|CuSO4",
    "<MOLFORMULA> c6h6 </MOLFORMULA>|C6H6",
    "Benzene|C6H6",
    "</MOLFORMULA> C6H6 <MOLFORMULA>|C6H6",
]
FORMULAS = [
    (answer, f"<MOLFORMULA> {wanted} </MOLFORMULA>") for answer, wanted in (row.split("|") for row in _FORMULAS)
]
_NAMES = [
    *("<IUPAC> ethanol </IUPAC>", "<IUPAC>ethanol</IUPAC>", "ethanol", "<IUPAC> Ethanol </IUPAC>", ""),
    *("<IUPAC> sodium;chloride </IUPAC>", "<IUPAC> chloride;sodium </IUPAC>", "<IUPAC> chloride; sodium </IUPAC>"),
    *("<think><IUPAC>a</IUPAC></think><IUPAC>ethanol</IUPAC>", "<IUPAC> methane </IUPAC> <IUPAC> ethanol </IUPAC>"),
]
NAMES = [(answer, f"<IUPAC> {wanted} </IUPAC>") for wanted in ("ethanol", "sodium;chloride") for answer in _NAMES]
_WORDS = "Yes|No|<BOOLEAN> Yes </BOOLEAN>|<BOOLEAN> no </BOOLEAN>|<BOOLEAN> True </BOOLEAN>|It is true|false, or yes"
_WORDS += "||perhaps|<think>yes</think>No"
TRUTHS = [(answer, f"<BOOLEAN> {wanted} </BOOLEAN>") for wanted in ("Yes", "No") for answer in _WORDS.split("|")]
_NUMBERS = "<NUMBER> -3.2 </NUMBER>|<NUMBER>2</NUMBER>|0.5|It is -1.5, or 1.25|none||<NUMBER> about 3 </NUMBER>"
_NUMBERS += "|<SMILES>C1CC1</SMILES> has 2.5|<SMILES>C1CC1</SMILES>|<think>9</think>1|<NUMBER>1e1</NUMBER>|.75|5.|1e-2"
_NUMBERS += "|-7|<NUMBER>-0.5</NUMBER> or <NUMBER>4</NUMBER>|</NUMBER>3<NUMBER>|<NUMBER>1_0</NUMBER>|2-1|<NUMBER>3"
NUMBERS = [(answer, f"<NUMBER> {n / 4 - 2} </NUMBER>") for n, answer in enumerate(_NUMBERS.split("|"))]

_DRAWN = "<SMILES> CCO </SMILES>|<SMILES>CCO</SMILES>|CCO|CCO is one|A molecule: CC(=O)O|c1ccccc1||no| |C1CCCC1C:C"
_DRAWN += "|x CCCC:C y|*CCCO*|<SMILES> C1CC </SMILES>|CCCl and CCBrC|<SMILES> CCO </SMILES> <SMILES> CC </SMILES>"
_DRAWN += "|C(C)(C)(C)(C)C|The SMILES is `CCCCO`.|N\u2082|1234|CCO"
DRAWN = [(answer, "") for answer in _DRAWN.split("|")]
