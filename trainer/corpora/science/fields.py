"""The fields of the templates in `phrases`, for one record and one of its properties."""

from functools import cache, lru_cache

from trainer.corpora.science.draw import Draw
from trainer.corpora.science.names import opening
from trainer.corpora.science.records import PLURAL_UNIT, Property, Record, Table, article, with_article


def of_record(record: Record, table: Table) -> dict[str, str]:
    """The fields that need none of the record's values."""
    return dict(_of_record(record.name, record.in_sentence, table.thing, table.things, table.heading, table.authority))


@lru_cache(256)  # every text of a record needs them
def _of_record(name: str, called: str, thing: str, things: str, heading: str, authority: str) -> dict[str, str]:
    a_thing = f"{article(thing)} {thing}"
    fields = {"called": called, "name": name, "thing": thing, "things": things, "a_thing": a_thing}
    fields |= {"A_thing": capital(a_thing), "heading": heading, "Heading": capital(heading)}
    if authority:
        fields["authority"] = authority
    title = opening(name)
    if title is not None:
        fields["Title"] = title
    if first := title if called == name else capital(called):
        fields["Opening"] = first
    elif called == name:
        fields["The_thing"] = f"The {thing} {name}"  # "The compound n-hexane"
    return fields


@cache
def _of_property(prop: Property) -> dict[str, str]:
    """The fields that need no record. Those that would not read well are left out: nothing has "a number of rings of
    2", no class "is permanent magnet", and no answer is given "in amino acids"."""
    stated = prop.stated and not prop.counted[0] and not prop.classed
    full, label = prop.label_here, prop.label
    are = ("are", "they", "They") if prop.plural else ("is", "it", "It")
    fields = {"label": label, "full": full, "condition": f" {prop.condition}" if prop.condition else ""}
    fields |= {"Label": capital(label), "Full": capital(full)}
    fields["whose"] = f"for which the {full}" if prop.possessive else f"whose {full}"
    if prop.stated and not prop.classed and not (prop.happened and prop.questions):
        fields |= dict(zip(("is", "it", "It"), are, strict=True))
    if stated and not prop.happened:
        its = prop.possessive or f"its {label}"
        fields |= {"its": f"{its} {prop.condition}".rstrip(), "Its_label": capital(its)}
        fields["Its"] = capital(fields["its"])
        fields |= {"a_label": f"{prop.article} {label}", "A_label": capital(f"{prop.article} {label}")}
    if prop.unit and not PLURAL_UNIT.search(prop.unit):
        fields["unit"] = prop.unit
    return fields


def of_value(record: Record, table: Table, key: str, draw: Draw) -> dict[str, str]:
    """All fields for one property of a record."""
    prop, value = table.properties[key], record.values[key]
    called = record.in_sentence
    fields = of_record(record, table) | _of_property(prop)
    fields |= {"value": prop.written(value), "bare": prop.bare(value)}
    # "What class does it belong to?" and "When was it introduced?", not "Give the class of it", "the year of ... is".
    if not ((prop.classed or prop.happened) and prop.questions):
        fields["of"] = prop.of_name(called)
    fields["noun"] = with_article(value) if prop.classed else fields["value"]
    several = len(prop.all_predicates)
    which = draw.below(several, "predicate") if several > 1 else 0
    if prop.counted[0]:
        fields["predicate"] = prop.predicate(value)
        if value != "0":  # "has no rings"
            fields["before_value"], fields["after_value"] = "has", f" {prop.counted[value != '1']}"
    elif prop.classed:
        fields["predicate"] = prop.predicate(value)
        fields["before_value"], fields["after_value"] = fields["predicate"].removesuffix(f" {value}"), ""
    elif several:
        fields["predicate"] = prop.predicate(value, which)
        fields["before_value"], _, fields["after_value"] = prop.all_predicates[which].partition(" {value}")
    if prop.part[0]:
        fields |= {"part": prop.part[0], "part_value": prop.part[1].replace("{value}", prop.written(value))}
    if prop.questions:
        fields["question"] = draw.one_of(prop.questions, "question").replace("{called}", called)
    return fields


def capital(text: str) -> str:
    """The text with a capital at its start, except for a symbol such as `pH`."""
    return text if text[:2] != text[:2].lower() else text[:1].upper() + text[1:]


def of_extreme(prop: Property, value: str, extreme: str) -> dict[str, str]:
    """The fields for the first thing of an order: it has the highest melting point, or was introduced most recently."""
    if not prop.happened:
        by_length = extreme in ("shortest", "longest")
        ending = f"the {extreme} {prop.label_here.removesuffix(' length') if by_length else prop.label_here}"
        counted = f"with {prop.predicate(value).removeprefix('has ')}" if prop.counted[0] else ""
        named = {} if by_length else {"extreme": extreme}  # no value is long
        return named | {
            "superior": f"has {ending}",
            "superlative": f"with {ending}",
            "as_found": f": {prop.written(value)}",
            "found": f", {counted or f'at {prop.written(value)}'}",
        }
    adverb = "earliest" if extreme == prop.extremes[0] else "most recently"
    return {
        "superior": f"was {prop.happened} {adverb}",
        "superlative": f"that was {prop.happened} {adverb}",
        "as_found": f", in {prop.written(value)}",
        "found": f" ({prop.written(value)})",
    }
