from pathlib import Path

import pytest

from trainer.corpora.science.tables.user_files import read_table
from trainer.data.errors import DataError

COLUMNS = """\
name: alloy
key: id
thing: alloy
authority: the survey of 2024
properties:
  mp: {said: melting point, unit: K}
  kind: {said: kind, text: true}
"""
CSV = 'alloy,id,mp,kind\nred brass,a1,1.2030e3,"copper, zinc"\n  invar ,a2,,iron\nnovel,a3,,\n'


@pytest.fixture
def columns(tmp_path: Path) -> Path:
    (tmp_path / "columns.yaml").write_text(COLUMNS)
    return tmp_path / "columns.yaml"


def test_cells_are_kept_as_they_are_written(tmp_path: Path, columns: Path) -> None:
    rows = {
        "a.csv": CSV,
        "a.tsv": CSV.replace('"copper, zinc"', "copper;zinc").replace(",", "\t").replace(";", ", "),
        "a.jsonl": '{"alloy": "red brass", "id": "a1", "mp": 1.2030e3, "kind": "copper, zinc"}\n\n'
        '{"alloy": "invar", "id": "a2", "mp": null, "kind": "iron", "other": [1]}\n{"alloy": "novel", "id": "a3"}\n',
    }
    for name, content in rows.items():
        (tmp_path / name).write_text("\ufeff" + content)
        table = read_table(tmp_path / name, columns)
        assert [(record.key, record.name, dict(record.values)) for record in table.records] == [
            ("a1", "red brass", {"mp": "1.2030e3", "kind": "copper, zinc"}),
            ("a2", "invar", {"kind": "iron"}),
        ]
        assert (table.thing, table.things, table.authority) == ("alloy", "alloys", "the survey of 2024")
        assert table.properties["mp"].written("1.2030e3") == "1.2030e3 K"
        assert not table.properties["kind"].number


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.csv", CSV.replace("1.2030e3", "> 1200"), "line 2, column 'mp': '> 1200' is no number"),
        ("a.csv", CSV.replace("a2", ""), "line 3: the column 'id' is empty"),
        ("a.csv", CSV.replace(",mp,", ",tm,"), "has no column 'mp'"),
        ("a.csv", CSV.replace("a3,,", "a3,,,"), "line 4: more cells than the header has"),
        ("a.csv", "alloy,id,mp,kind\nx,y,,\n", "has no record with a value in mp or kind"),
        ("a.txt", CSV, "use a file whose name ends in .csv, .tsv or .jsonl"),
        ("a.jsonl", '{"alloy": \n', "Expecting value"),
        ("b.csv", None, "No such file"),
        ("columns.yaml", COLUMNS.replace("unit", "units"), "properties.mp.units is unknown.*did you mean 'unit'"),
        ("columns.yaml", COLUMNS.replace("thing:", "thingy:"), "'thingy' is no key.*did you mean 'thing'"),
        ("columns.yaml", COLUMNS.replace("name: alloy", "name: 3"), "name=3 is no text"),
        ("columns.yaml", COLUMNS.replace("text: true", "text: maybe"), "kind.text='maybe' is not true or false"),
        ("columns.yaml", COLUMNS.replace("said: kind,", "of: kind of it, said: kind,"), r"lacks \{name\}"),
        ("columns.yaml", "properties: [", "is no YAML"),
        ("columns.yaml", "name: x\n", "lacks a name or properties"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, columns: Path, file: str, content: str | None, message: str
) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    if content is not None:
        (tmp_path / file).write_text(content)
    path = tmp_path / ("a.csv" if file == "columns.yaml" else file)
    with pytest.raises(DataError, match=message):
        read_table(path, columns)
