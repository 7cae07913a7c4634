"""Molecules: SMILES and InChI, compared by RDKit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from parallel.errors import one_of
from trainer.evaluation.scorers.extract import tagged
from trainer.rl.rewards.base import Question, RewardError, Verdict, any_reference, check_package
from trainer.rl.rewards.final import final_answer, said
from trainer.rl.rewards.processes.pool import Workers

MODULE = "trainer.rl.rewards.processes.molecules"
LONGEST = 1_000  # characters of a molecule
Form = Literal["smiles", "inchi", "tautomer"]


@dataclass(frozen=True)
class Molecule:
    """1 if the answer is the reference's molecule, else 0. Either may be SMILES or InChI.

    by: the form in which two molecules are equal.
        smiles    RDKit's canonical SMILES: tautomers, protonation states and ways to draw a metal's bonds are different
        inchi     the standard InChI: tautomers by mobile hydrogen are equal (those of keto and enol are not), and so
                  are a metal complex and its ions, as InChI takes bonds of metals apart. Where a molecule has no InChI
                  (one with atoms `*`, say), canonical SMILES are compared
        tautomer  the canonical SMILES of RDKit's canonical tautomer
    stereo, isotopes: they count. salts: all parts count, in any order; without it the largest organic part does, as
    neutral as it can be, and bonds of metals are taken apart. Numbers of atom maps never count. seconds: for one
    comparison, after which the answer is wrong. processes: that compare side by side.

    The answer is the last text in `<SMILES>` tags, else the final answer; one with spaces in it is not a molecule.
    """

    by: Form = "smiles"
    stereo: bool = True
    isotopes: bool = True
    salts: bool = True
    seconds: float = 10.0
    processes: int = 1
    _workers: Workers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.by not in get_args(Form):
            allowed = get_args(Form)
            raise RewardError(f"by={self.by}: use {one_of(allowed)}", where="by", value=self.by, allowed=allowed)
        check_package("molecule", "rdkit", "rdkit")
        object.__setattr__(self, "_workers", Workers(MODULE, self.processes, self.seconds))

    @any_reference
    def __call__(self, question: Question, answer: str) -> Verdict:
        found = (tagged(said(answer), "SMILES") or [final_answer(answer) or ""])[-1]
        if not found:
            return Verdict(0.0, "no final answer")
        if len(found) > LONGEST or any(map(str.isspace, found)):
            return Verdict(0.0, "not a molecule")
        how = {"stereo": self.stereo, "isotopes": self.isotopes, "salts": self.salts, "form": self.by}
        wanted = str(question.answer).strip()
        try:
            one, other = self._workers.ask([[found, wanted], how])
        except TimeoutError:
            return Verdict(0.0, f"no verdict within {self.seconds:g} s")
        except ValueError:
            return Verdict(0.0, "no verdict")
        if other is None or not wanted:
            where = f"question {question.number}"
            text = f"{where}: the reference {question.answer!r} is not a molecule that RDKit can read"
            raise RewardError(text, where=where, value=question.answer, allowed="SMILES or InChI")
        return self._compare(one, other)

    def _compare(self, one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> Verdict:
        if one is None:
            return Verdict(0.0, "not a molecule")
        form = "form" if one["form"] and other["form"] else "smiles"
        same = one[form] == other[form]
        if form == "smiles":
            return Verdict(float(same), "no InChI, so SMILES were compared")
        return Verdict(float(same), "" if same else "another molecule")

    def close(self) -> None:
        self._workers.close()

    def counts(self) -> Mapping[str, float]:
        return {f"molecule/{name}": count for name, count in self._workers.counts.items()}
