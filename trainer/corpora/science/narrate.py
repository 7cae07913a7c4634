"""A record as prose: every value as its source writes it, in sentences, orders and shapes drawn from templates."""

from trainer.corpora.science import phrases
from trainer.corpora.science.draw import Draw
from trainer.corpora.science.records import Record, Table

ALL_OF = 4  # properties; of more, a text leaves some out
CARD = 6  # one text in so many is a card of `property: value` lines


def narrate(record: Record, table: Table, draw: Draw) -> tuple[str, str]:
    """(text, which templates it is made of). The text says the record's name and two or more of its properties, or the
    only one."""
    told = draw.shuffled([key for key in table.properties if key in record.values], "told")
    if len(told) > ALL_OF:
        told = told[:2] + [key for key in told[2:] if draw.below(4, f"tell {key}")]
    if draw.below(CARD, "card") == 0:
        return _card(record, table, told, draw)
    words = {"name": record.name, "thing": table.thing, "authority": table.authority}
    sentences, used = [], []
    for place, key in enumerate(told):
        prop = table.properties[key]
        ways = phrases.FIRST if place == 0 else phrases.STATEMENTS if prop.number else phrases.TEXT_STATEMENTS
        way = draw.below(len(ways), f"say {key}")
        value = prop.written(record.values[key])
        sentences.append(ways[way].format(of=prop.of_name(record.name), said=prop.said, value=value, **words))
        used.append(f"{place > 0:d}{way}")
    if table.authority and draw.below(2, "authority"):
        sentences.append(draw.one_of(phrases.SOURCES, "source").format(**words))
    shape = draw.below(len(phrases.SHAPES), "shape")
    opening = draw.below(len(phrases.OPENINGS), "opening")
    body = (" ", " ", "\n")[draw.below(3, "lines")].join(sentences)
    text = phrases.SHAPES[shape].format(opening=phrases.OPENINGS[opening].format(**words), body=body)
    return text + "\n", f"prose {shape} {opening} {' '.join(used)}"


def _card(record: Record, table: Table, told: list[str], draw: Draw) -> tuple[str, str]:
    style = draw.below(len(phrases.CARDS), "style")
    rows = [("name", record.name)]
    rows += [(table.properties[key].said, table.properties[key].written(record.values[key])) for key in told]
    lines = [phrases.CARDS[style].format(key=key, value=value) for key, value in rows]
    return "\n".join(lines) + "\n", f"card {style}"
