"""The file of captioners: defaults, and a refusal that names the key for everything else."""

from pathlib import Path

import pytest

from trainer.corpora.captions.describe.captioner import MODELS, Endpoint
from trainer.corpora.captions.describe.endpoints import read_endpoints
from trainer.data.errors import DataError

URL = "url: http://a:1/v1"


def test_a_captioner_needs_an_address_and_has_a_default_model(tmp_path: Path):
    path = tmp_path / "captioners.yaml"
    path.write_text(
        f"science: {{{URL}, concurrency: 64, price_out: 2, temperature: 0}}\ngeneral: {{{URL}, model: own}}"
    )
    assert read_endpoints(path) == {
        "science": Endpoint("http://a:1/v1", MODELS["science"], concurrency=64, price_out=2, temperature=0),
        "general": Endpoint("http://a:1/v1", "own"),
    }
    path.write_text(f"general: {{{URL}}}")
    assert read_endpoints(path) == {"general": Endpoint("http://a:1/v1", MODELS["general"])}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ""),
        ("[", ""),
        ("- science", ""),
        ("biology: {url: a}", ": biology.model"),
        ("science: http://a:1/v1", ": science"),
        ("science: {model: m}", ": science"),
        (f"science: {{{URL}, key: secret}}", ": science.key"),
        (f"science: {{{URL}, model: 3}}", ": science.model"),
        (f"science: {{{URL}, max_tokens: 0}}", ": science.max_tokens"),
        (f"science: {{{URL}, concurrency: 1.5}}", ": science.concurrency"),
        (f"science: {{{URL}, timeout: true}}", ": science.timeout"),
        (f"science: {{{URL}, price_in: -1}}", ": science.price_in"),
        (f"science: {{{URL}, timeout: .nan}}", ": science.timeout"),
    ],
)
def test_what_is_not_a_captioner_is_refused_by_its_key(tmp_path: Path, text, where):
    path = tmp_path / "captioners.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_endpoints(path)
    assert caught.value.where == f"{path}{where}"


def test_a_file_that_is_missing_is_refused(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read_endpoints(tmp_path / "none.yaml")
    assert caught.value.where == str(tmp_path / "none.yaml")
