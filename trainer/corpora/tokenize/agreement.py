"""Tokenizers of others: what their configuration adds to tokenizer.json, and if transformers gives the same ids.

A corpus keeps tokenizer.json alone. What transformers takes from tokenizer_config.json besides must be the same there,
or is refused, with the command that writes both anew.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError
from trainer.data.shards.around import Template
from trainer.data.shards.tokenizer import CONFIG, Tokenizer, named_token, read_config

# Where normalizers and pre-tokenizers differ: case, digits, apostrophes, white space, scripts, forms of a character.
PROBES = (
    "The iron's atoms don't melt at 1538 \u00b0C, or 2,800.5 F!",
    "  two  spaces,\ttabs\n\n\nand lines \r\n",
    " leading",
    "caf\u00e9 cafe\u0301 \ufb01ne \uff21\uff22 \u00b2\u2460",
    "\u4e2d\u6587\u3002\u65e5\u672c\u8a9e \u0440\u0443\u0441 \u0e44\u0e17\u0e22",
    "x = [1e-3, -0.5]  # if (a<=b) {}",
    "\U0001f9ea\u200d\U0001f52c e=mc^2 \u03b1\u2192\u03b2",
    "http://a.b/c?d=e&f_g@h",
)


def contradictions(tokenizer: Tokenizer, template: Template, file: Path) -> Iterator[str]:
    """add_bos_token and add_eos_token that differ from the template of tokenizer.json, which transformers 5 follows."""
    path = file.with_name(CONFIG)
    for name, ids in (("bos", template.before), ("eos", template.after)):
        asked = read_config(path).get(f"add_{name}_token")
        token = named_token(path, f"{name}_token") if asked is not None else None
        if token is not None and bool(asked) != (tokenizer.id_of(token) in ids):
            given = "adds" if not asked else "does not add"
            yield f"add_{name}_token of {path} has no effect: the template of tokenizer.json {given} {token}"


def check_end(tokenizer: Tokenizer) -> None:
    """Refuse an end-of-document token that text gives which is not meant to end a document. Raises DataError."""
    end = tokenizer.end_of_document
    if tokenizer.added.get(end):
        return
    for text in (end, f" {end}", f"a {end} a", tokenizer.decode([tokenizer.eos_id])):
        if text and tokenizer.eos_id in tokenizer.encode(text):
            special = [token for token, is_special in tokenizer.added.items() if is_special]
            raise DataError(
                f"{end} does not only end documents: the text {text!r} has it too; choose a special token with --eos",
                where="--eos",
                value=end,
                allowed=tuple(special) or "a special token",
            )


def check_tokens(tokenizer: Tokenizer, file: Path) -> None:
    """Compare the tokens that tokenizer_config.json lists with those of tokenizer.json. Raises DataError."""
    path = file.with_name(CONFIG)
    listed = read_config(path).get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        text = f"{path}: added_tokens_decoder is not a table of tokens; repair it"
        raise DataError(text, where=f"{path}, added_tokens_decoder", allowed="a JSON object")
    for token in listed.values():
        content, special = (token.get("content"), token.get("special")) if isinstance(token, dict) else (token, None)
        if not isinstance(content, str) or tokenizer.id_of(content) is None:
            raise _disagree(file, f"it lists the token {content!r}, which tokenizer.json does not have", content)
        if special is not None and special != tokenizer.added.get(content, special):
            raise _disagree(
                file, f"it says special: {str(special).lower()} of {content}, tokenizer.json does not", content
            )


def compare(file: Path, tokenizer: Tokenizer, template: Template, texts: Sequence[str]) -> str | None:
    """Encode some texts with transformers, where there is a tokenizer_config.json, and return why it was not possible.

    Raises DataError with the first text whose ids differ.
    """
    if not file.with_name(CONFIG).is_file():
        return None
    if file.name != "tokenizer.json":
        return f"{file} is not named tokenizer.json, so the ids of transformers could not be compared"
    if importlib.util.find_spec("transformers") is None:
        return f"transformers is not installed, so its ids for {file.parent} could not be compared"
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(str(file.parent), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its classes raise what they like
        return (
            f"transformers cannot load {file.parent}, so its ids could not be compared: {' '.join(str(error).split())}"
        )
    spelled = [f"a {token} b{token}" for token in sorted({*tokenizer.added, *theirs.get_added_vocab()})]
    for text in (*texts, *PROBES, *spelled):
        try:
            (ours,) = tokenizer.encode_all([text])
        except DataError:
            continue  # reported with its row, should it be in the input
        expected = theirs(text, split_special_tokens=tokenizer.special_text == "spell", verbose=False)["input_ids"]
        if [*template.before, *ours, *template.after] != list(expected):
            raise _disagree(file, f"with it, transformers gives other ids for the text {text[:80]!r}", text)
    return None


def _disagree(file: Path, problem: str, value: Any) -> DataError:
    path = file.with_name(CONFIG)
    code = (
        f"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{file.parent}').save_pretrained('NEW')"
    )
    remedy = f'write both anew with: python -c "{code}"'
    return DataError(f"{path}: {problem}; {remedy}", where=str(path), value=value, allowed=remedy)
