"""The tokenizer of a run's corpora: kept in the run's directory, written with its exports. No torch here.

RUN_DIR/tokenizer/   tokenizer.json          the corpora's file, byte for byte
                     tokenizer_config.json   what transformers' AutoTokenizer needs beside it
                     chat_template.jinja, additional_chat_templates/   of chats: what they were rendered with
                     manifest.json           hashes of these, the token that ends a document or a turn
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.chat.template import DEFAULT, NAMED, TEMPLATE
from trainer.config.run_files import CONFIG_FILE, TOKENIZER_DIRECTORY, TOKENIZER_FACT, read_tree
from trainer.data.errors import DataError
from trainer.data.protocols import ChatFiles, TokenizerFile
from trainer.data.shards.files import TOKENIZER, read_manifest
from trainer.data.shards.tokenizer import read_tokenizer
from trainer.storage.atomic import TargetExistsError, atomic_directory, sync
from trainer.storage.manifest import CHECKPOINT, CorruptError
from trainer.weights.hf_files import HuggingFaceError

BEFORE = "before"  # in the manifest: the ids that open every document
CHAT = "chat"  # in the manifest: templates, special tokens and the ids that end a turn
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"


@dataclass(frozen=True)
class FoundTokenizer:
    """A run's tokenizer: its file, the token that ends a document and the one that opens it.

    In corpora without an opening token a document follows the end of another: their texts start behind that token.
    """

    file: Path
    eos: str
    eos_id: int
    bos: str
    bos_id: int
    without_template: bool  # the corpora lack what tokenizer.json puts around a text
    chat: ChatFiles | None = None  # of a run on chats, whose turns `eos` ends

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a text: of chats, those that end turns."""
        return frozenset((self.chat and self.chat.stop_ids) or (self.eos_id,))

    def token_ids(self) -> dict[str, Any]:
        """Keys of config.json and generation_config.json."""
        ends = [self.eos_id, *sorted(self.stop_ids - {self.eos_id})]
        stop = ends if len(ends) > 1 else self.eos_id
        return {"bos_token_id": self.bos_id, "eos_token_id": stop, "pad_token_id": self.eos_id}

    def tokenizer_config(self) -> dict[str, Any]:
        """The file that transformers' AutoTokenizer needs beside tokenizer.json."""
        special: Mapping[str, str] = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.eos}
        if self.chat is not None:
            special = self.chat.special_tokens  # no more: the template may ask if there is another
        return {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast", **special}

    def side_files(self, max_position: int) -> dict[str, Path | bytes]:
        """The files of an export. max_position: the longest text that the model was made for."""
        content: Path | bytes = self.file
        if self.without_template:  # transformers follows it, whatever tokenizer_config.json says
            content = json_bytes({**json.loads(self.file.read_text(encoding="utf-8")), "post_processor": None})
        return {
            TOKENIZER: content,
            TOKENIZER_CONFIG: json_bytes({**self.tokenizer_config(), "model_max_length": max_position}),
            GENERATION_CONFIG: json_bytes(self.token_ids()),
            **self.template_files(),
        }

    def template_files(self) -> dict[str, Path | bytes]:
        """The chat template's files, by their paths in a directory; none without chats."""
        return {} if self.chat is None else {**_template_files(self.chat)}


def keep_tokenizer(run_directory: Path, tokenizer: TokenizerFile) -> None:
    """Copy the corpora's tokenizer into the run's directory, unless it is there. Raises HuggingFaceError."""
    target = run_directory / TOKENIZER_DIRECTORY
    try:
        if _is_kept(target, tokenizer):
            return
        CHECKPOINT.remove_directory(target, TOKENIZER_FACT)  # of a start that came to no step
        with atomic_directory(target) as temporary:
            shutil.copyfile(tokenizer.path, temporary / TOKENIZER)
            found = _found(temporary / TOKENIZER, tokenizer.end_of_document, tokenizer.before, tokenizer.chat)
            (temporary / TOKENIZER_CONFIG).write_bytes(json_bytes(found.tokenizer_config()))
            names = [TOKENIZER, TOKENIZER_CONFIG]
            for name, content in _template_files(tokenizer.chat).items() if tokenizer.chat is not None else ():
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_bytes(content)
                names.append(name)
            files = {name: CHECKPOINT.file_facts(temporary / name) for name in names}
            for name in files:
                sync(temporary / name)
            facts: dict[str, Any] = {TOKENIZER_FACT: tokenizer.end_of_document, BEFORE: list(tokenizer.before)}
            if tokenizer.chat is not None:
                facts[CHAT] = asdict(tokenizer.chat)
            CHECKPOINT.write(temporary, facts, files)
    except TargetExistsError as error:
        raise HuggingFaceError(
            f"{error.path}, where the run stores its tokenizer, holds other files; move them away, or use another "
            "run.dir",
            where=str(error.path),
            allowed="another run.dir",
        ) from None
    except OSError as error:
        raise HuggingFaceError(
            f"{target} cannot be written: {error.strerror or error}",
            where=str(target),
            value=error.strerror,
            allowed="a writable run directory, with enough space",
        ) from error


def find_tokenizer(run_directory: Path) -> tuple[FoundTokenizer | None, str | None]:
    """The tokenizer that a run kept, or that its corpora have; and why there is none, where there should be one.

    Raises HuggingFaceError for a kept one that is damaged, ConfigError for a configuration that cannot be read.
    """
    kept = run_directory / TOKENIZER_DIRECTORY
    if kept.is_dir():
        try:
            facts = CHECKPOINT.read(kept)
            if fault := CHECKPOINT.check_file(kept, TOKENIZER, facts["files"][TOKENIZER]):
                raise fault
        except CorruptError as damage:
            raise HuggingFaceError(
                f"the run's tokenizer is damaged: {damage}; restore {TOKENIZER} from the corpus, or remove {kept}",
                where=str(damage.path),
                value=damage.problem,
                allowed=f"the file as the run wrote it, or no {kept}",
            ) from None
        chat = facts.get(CHAT)
        if chat is not None:
            chat = ChatFiles(chat["templates"], chat["special_tokens"], tuple(chat["stop_ids"]))
        return _found(kept / TOKENIZER, facts[TOKENIZER_FACT], facts[BEFORE], chat), None
    return _of_the_corpora(_data(run_directory))


def of_synthetic_data(run_directory: Path) -> bool:
    """Return True if a run's data are synthetic. Raises ConfigError for a configuration that cannot be read."""
    return _data(run_directory).get("name") == "synthetic"


def _data(run_directory: Path) -> Mapping[str, Any]:
    return read_tree(run_directory / CONFIG_FILE).get("data") or {}


def put_token_ids(config: dict[str, Any], ids: Mapping[str, int]) -> None:
    """Set the special tokens of a config.json and of its text model, where it names none."""
    sections = [config, config["text_config"]] if isinstance(config.get("text_config"), dict) else [config]
    for section in sections:
        for key, value in ids.items():
            if section.get(key) is None:
                section[key] = value


def _of_the_corpora(data: Mapping[str, Any]) -> tuple[FoundTokenizer | None, str | None]:
    """For runs from before tokenizers were kept."""
    if data.get("name") == "synthetic":
        return None, None
    places = [str(data.get("cache_dir"))]
    if data.get("build") != "toy":
        places = [str(Path(data.get("root") or ".", source["path"])) for source in (data.get("sources") or {}).values()]
        for place in places:
            try:
                facts = read_manifest(Path(place))["tokenizer"]
            except (DataError, KeyError):
                continue
            if (file := Path(place, TOKENIZER)).is_file():
                return _found(file, facts["eos"], facts.get("before", ())), None
    return (
        None,
        f"the run kept none, and which of those in {', '.join(places) or 'its corpora'} it used is not recorded",
    )


def _is_kept(directory: Path, tokenizer: TokenizerFile) -> bool:
    file = directory / TOKENIZER
    if not file.is_file() or file.read_bytes() != tokenizer.path.read_bytes():
        return False
    try:
        kept = CHECKPOINT.read(directory).get(CHAT)
    except CorruptError:
        return tokenizer.chat is None  # what reads it later reports the damage
    return bool(kept == (json.loads(json.dumps(asdict(tokenizer.chat))) if tokenizer.chat is not None else None))


def _template_files(chat: ChatFiles) -> dict[str, bytes]:
    names = {name: TEMPLATE if name == DEFAULT else f"{NAMED}/{name}.jinja" for name in chat.templates}
    return {names[name]: text.encode() for name, text in chat.templates.items()}


def _found(file: Path, eos: str, before: Sequence[int], chat: ChatFiles | None = None) -> FoundTokenizer:
    try:
        read = read_tokenizer(file)
    except DataError as error:
        raise HuggingFaceError(error.faults) from error
    eos_id, bos_id = read.token_to_id(eos), before[0] if before else None
    bos = eos if bos_id is None else read.id_to_token(bos_id)
    if eos_id is None or bos is None:
        raise HuggingFaceError(
            f"{file} has no token {eos}, which ends the corpora's documents"
            if eos_id is None
            else f"{file} has no token {bos_id}, which opens the corpora's documents",
            where=str(file),
            value=eos if eos_id is None else bos_id,
            allowed="the tokenizer.json of the corpora",
        )
    around = bool(read.encode("").ids)
    if chat is not None and (named := chat.special_tokens.get("bos_token")) is not None:
        bos, bos_id = named, read.token_to_id(named)
    bos_id = eos_id if bos_id is None else bos_id
    return FoundTokenizer(file, eos, eos_id, bos, bos_id, around and not before, chat)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
