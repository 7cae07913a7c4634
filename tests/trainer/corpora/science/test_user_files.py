from pathlib import Path

import pytest

from trainer.corpora.science.tables.user_files import read_table
from trainer.data.errors import DataError

COLUMNS = """\
name: alloy
key: id
thing: alloy
authority: the 2024 survey
properties:
  mp: {label: melting point, unit: K}
  kind: {label: kind, text: true}
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
        assert (table.thing, table.things, table.authority) == ("alloy", "alloys", "the 2024 survey")
        assert table.properties["mp"].written("1.2030e3") == "1.2030e3 K"
        assert not table.properties["kind"].number


@pytest.mark.parametrize(
    ("file", "content", "where", "value", "allowed"),
    [
        ("a.csv", CSV.replace("1.2030e3", "> 1200"), "a.csv, line 2, column 'mp'", "> 1200", "text: true"),
        ("a.csv", CSV.replace("a2", ""), "a.csv, line 3, column 'id'", None, "fill the cell"),
        ("a.csv", CSV.replace(",mp,", ",tm,"), "columns.yaml: mp", "mp", "tm"),
        ("a.csv", CSV.replace("a3,,", "a3,,,"), "a.csv, line 4", None, "quote cells"),
        ("a.csv", "alloy,id,mp,kind\nx,y,,\n", "a.csv", None, "fill mp or kind"),
        ("a.txt", CSV, "a.txt", ".txt", ".csv"),
        (
            "a.jsonl",
            '{"alloy": "x", "id": "y"}\n{"alloy": \n',
            "a.jsonl, line 2",
            "Expecting value",
            "correct the line",
        ),
        ("b.csv", None, "b.csv", None, "readable file"),
        ("columns.yaml", COLUMNS.replace("unit", "units"), "columns.yaml: properties.mp.units", "K", "unit"),
        ("columns.yaml", COLUMNS.replace("thing:", "thingy:"), "columns.yaml: thingy", "thingy", "thing"),
        ("columns.yaml", COLUMNS.replace("name: alloy", "name: 3"), "columns.yaml: name", 3, "a text"),
        ("columns.yaml", COLUMNS.replace("true", "maybe"), "properties.kind.text", "maybe", "true or false"),
        ("columns.yaml", COLUMNS.replace("label: kind, ", ""), "properties.kind", {"text": True}, "label"),
        ("columns.yaml", "properties: [", "columns.yaml", "while parsing", "name: compound"),
        ("columns.yaml", "name: x\n", "columns.yaml", None, "name: compound"),
    ],
)
def test_a_mistake_is_reported_with_its_place(
    tmp_path: Path, columns: Path, file: str, content: str | None, where: str, value: object, allowed: str
) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    if content is not None:
        (tmp_path / file).write_text(content)
    path = tmp_path / ("a.csv" if file == "columns.yaml" else file)
    with pytest.raises(DataError) as caught:
        read_table(path, columns)
    assert caught.value.where.endswith(where)
    assert allowed in caught.value.allowed
    found = caught.value.value
    assert found.startswith(value) if isinstance(found, str) and isinstance(value, str) else found == value
    assert str(tmp_path) in caught.value.lines[0]


def test_a_near_miss_is_suggested(tmp_path: Path, columns: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    columns.write_text(COLUMNS.replace("unit", "units"))
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "a.csv", columns)
    assert "'unit'" in caught.value.lines[0]
