"""The fields of the templates in `phrases`, for one record and one of its properties."""

from trainer.corpora.science.draw import Draw
from trainer.corpora.science.names import opening
from trainer.corpora.science.records import PLURAL_UNIT, Record, Table, article


def of_record(record: Record, table: Table) -> dict[str, str]:
    """The fields that need none of the record's values."""
    called = record.in_sentence
    a_thing = f"{article(table.thing)} {table.thing}"
    fields = {"called": called, "name": record.name, "thing": table.thing, "things": table.things}
    fields |= {"a_thing": a_thing, "A_thing": capital(a_thing)}
    if table.authority:
        fields["authority"] = table.authority
    fields |= {"heading": table.heading, "Heading": capital(table.heading)}
    title = opening(record.name)
    if title is not None:
        fields["Title"] = title
    if first := title if called == record.name else capital(called):
        fields["Opening"] = first
    return fields


def of_value(record: Record, table: Table, key: str, draw: Draw) -> dict[str, str]:
    """All fields for one property. Those that would not read well are left out: nothing has "a number of rings of 2",
    and no answer is given "in amino acids"."""
    prop, value = table.properties[key], record.values[key]
    fields = of_record(record, table)
    called, full, label = fields["called"], prop.label_here, prop.label
    condition = f" {prop.condition}" if prop.condition else ""
    fields |= {"of": prop.of_name(called), "label": label, "full": full, "condition": condition}
    fields |= {"Label": capital(label), "Full": capital(full), "value": prop.written(value)}
    which = draw.below(len(prop.all_predicates), "predicate")
    fields["predicate"] = prop.predicate(value, which)
    fields["before_value"], _, after = prop.all_predicates[which].partition(" {value}")
    fields["after_value"] = after
    if prop.counted[0]:
        fields["before_value"], fields["after_value"] = "has", f" {prop.counted[value != '1']}"
    else:
        fields |= {"its": f"its {full}", "Its": f"Its {full}", "Its_label": f"Its {label}"}
        fields |= {"a_label": f"{prop.article} {label}", "A_label": capital(f"{prop.article} {label}")}
    if prop.unit and not PLURAL_UNIT.search(prop.unit):
        fields["unit"] = prop.unit
    if prop.questions:
        fields["question"] = draw.one_of(prop.questions, "question").replace("{called}", called)
    return fields


def capital(text: str) -> str:
    """The text with a capital at its start, except for a symbol such as `pH`."""
    return text if text[:2] != text[:2].lower() else text[:1].upper() + text[1:]
