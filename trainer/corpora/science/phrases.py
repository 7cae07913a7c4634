"""Templates for the prose and the tasks that are made of records.

Fields, as for the melting point of toluene:

    {called}     toluene, the Bohr radius              {name}       toluene, Bohr radius (in lists and tables)
    {Opening}    Toluene, The Bohr radius              {of}         melting point of toluene
    {label}      melting point                         {condition}  "", or " in the gas phase at 298.15 K"
    {full}       {label}{condition}                    {predicate}  melts at 178.1 K
    {its}        its {full}                            {a_label}    a melting point
    {value}      178.1 K                               {unit}       K
    {noun}       178.1 K, a permanent magnet
    {is}         is, are for a plural label             {it}         it, they
    {superior}   has the highest melting point          {superlative} with the highest melting point
    {thing}      compound ({things}: compounds)        {authority}  the CRC Handbook of Chemistry and Physics
    {The_thing}  The compound toluene                  {source}     CRC Handbook of Chemistry and Physics
    {whose}      whose melting point, for which the mass of the most abundant isotope
    {part}       most abundant isotope                 {part_value} a mass of 207.976636 u
    {by}         melting point, mass of their most abundant isotope
    {bare}       {value} without quotes
    {properties} properties, except of things that are quantities
    {Heading}    Name, the head of a column of names   {Title}      Toluene, Bohr radius

A field with a capital, such as {Its}, is the same at the start of a sentence.

A template is used only where the record has all its fields (`usable`): there is no {Opening} for "n-hexane", which
cannot open a sentence, and no {authority} for a table without one.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from string import Formatter


@cache
def _fields(template: str) -> frozenset[str]:
    return frozenset(name for _, name, _, _ in Formatter().parse(template) if name)


@cache
def _usable(templates: Sequence[str], words: frozenset[str]) -> tuple[int, ...]:
    return tuple(place for place, template in enumerate(templates) if _fields(template) <= words)


def says_it(template: str) -> bool:
    """Return True if the subject of a sentence is "it"."""
    return template.startswith("It ") or ", it " in template


def usable(templates: Sequence[str], words: Iterable[str]) -> tuple[int, ...]:
    """The places of the templates that need no other fields than these."""
    return _usable(templates, frozenset(words))


def fill(template: str, words: Mapping[str, str]) -> str:
    """The template with its fields. A value that ends with a period, such as `Vibrio sp.`, ends a sentence with it."""
    text = template.format(**words)
    if ".." in text:
        for field in ("value", "noun", "also", "called", "bare"):
            if words.get(field, "").endswith("."):
                text = text.replace(words[field] + ".", words[field])
    return text


# Narration: an opening, a first statement that names the thing, more statements, and a source.
OPENINGS = (
    "The following information is available for {called}.",
    "This entry gives data for {called}.",
    "The data below are for {called}.",
    "Data for {called} are given below.",
    "The following data for {called} are from {authority}.",
)
OPENINGS_OF_SEVERAL = (  # values
    *OPENINGS,
    "Selected {properties} of {called} are given below.",
    "The following data have been compiled for {called}.",
    "Here are some {properties} of {called}.",
    "Some basic data on {called} are given here.",
    "Some {properties} of {called} are summarized below.",
)
TITLES = ("{Title}", "# {Title}", "**{Title}**", "Entry: {name}", "Data sheet: {name}", "Reference data for {called}")
FIRST = (
    "The {of} {is} {value}.",
    "{Opening} {predicate}.",
    "{Opening} {predicate}.",
    "According to {authority}, the {of} {is} {value}.",
    "{Opening} {predicate}, according to {authority}.",
    "{Opening}'s {part} has {part_value}.",
    "{The_thing} {predicate}.",
)
FIRST_MEASURED = (
    "The reported {of} is {value}.",
    "The {full} reported for {called} is {value}.",
    "{Opening} is reported to have {a_label} of {value}{condition}.",
)
FIRST_PAIR = "{Opening} {predicate} and {also}."
PAIR = "It {predicate} and {also}."
# A value and its uncertainty.
FOLLOWED_FIRST = (
    "The {of} {is} {value}, with {following}.",
    "{Opening} {predicate}, with {following}.",
)
FOLLOWED = ("{Its} {is} {value}, with {following}.", "The {full} {is} {value}, with {following}.")
STATEMENTS = (
    "{Its} {is} {value}.",
    "It {predicate}.",
    "{Its_label} {is} {value}{condition}.",
    "It {predicate}.",
    "The {full} {is} {value}.",
    "Its {part} has {part_value}.",
)
MEASURED = (
    "{Its} is reported as {value}.",
    "The reported {full} is {value}.",
    "The {full} is given as {value}.",
)
TEXT_STATEMENTS = (
    "{Its} {is} {value}.",
    "It {predicate}.",
    "The {full} {is} {value}.",
    "It {predicate}.",
    "{Its} {is} listed as {value}.",
)
# One value where others are possible, such as an alternative name.
ONE_OF_SEVERAL_FIRST = ("{Opening} {predicate}.", "{A_label} of {called} is {value}.")
ONE_OF_SEVERAL = ("It {predicate}.", "{A_label} is {value}.")
# A class of the thing.
CLASSED_FIRST = ("{Opening} {predicate}.", "{The_thing} {predicate}.")
# A year in which something happened to the thing.
DATED_FIRST = CLASSED_FIRST
DATED = ("It {predicate}.", "{Opening} {predicate}.")
# Values of one label under several conditions; the second pair where they share a part of these, such as the phase.
SEVERAL_FIRST = ("The {label} of {called} is {values}.", "{Opening} has {a_label} of {values}.")
SEVERAL = ("Its {label} is {values}.", "The {label} is {values}.", "It has {a_label} of {values}.")
SHARED_FIRST = (
    "{Shared}, the {label} of {called} is {values}.",
    "{Shared}, {called} has {a_label} of {values}.",
)
SHARED = (
    "{Shared}, its {label} is {values}.",
    "{Shared}, the {label} is {values}.",
    "{Shared}, it has {a_label} of {values}.",
)
# Sentences whose subject is a value and which do not name the thing start so.
ABOUT_VALUE = ("The {full}", "The reported {full}", "The {label} is {values}", "{A_label} is")
SOURCES = (
    "{These_values} taken from {authority}.",
    "Source: {source}.",
    "{These_values} from {authority}.",
    "The source is {authority}.",
)
SHAPES = ("{opening} {body}", "{opening}\n\n{body}", "{opening}\n{body}")  # the last for titles
CARDS = (  # before the rows, a row
    *(("", "{Label}: {value}"), ("", "- {Label}: {value}"), ("", "- **{Label}:** {value}")),
    ("| Property | Value |\n| --- | --- |\n", "| {Label} | {value} |"),
    *(("Property\tValue\n", "{Label}\t{value}"), ("", "* {Label}: {value}")),
)

# Question and answer.
QUESTIONS = (
    "What {is} the {of}?",
    "What {is} the {of}?",
    "Give the {of}.",
    "State the {of}.",
    "Please give the {of}.",
    "{question}",
    "{question}",
    "I need the {of}. What {is} {it}?",
    "For {called}, what {is} the {full}?",
    "According to {authority}, what {is} the {of}?",
    "Can you give me the {of}?",
    "Could you look up the {of}?",
    "Do you know the {of}?",
    "I'm looking for the {of}.",
    "Consider {called}. What {is} {its}?",
    "Report the {of}.",
)
UNIT_HINTS = (
    " Answer in {unit}.",
    " Give your answer in {unit}.",
    " Express the answer in {unit}.",
    " Include the unit.",
)
SOURCE_HINTS = (
    " Use the data from {authority}.",
    " Use {authority} as your source.",
    " Refer to {authority}.",
    " Base your answer on {authority}.",
)
ANSWERS = (
    *("{value}", "{value}", "The {of} {is} {value}.", "{It} {is} {value}."),
    *("{Opening} {predicate}.", "{Its} {is} {value}.", "The answer is {noun}.", "It {predicate}."),
    "{Its_label} {is} {value}{condition}.",
)
WHOSE = (
    "Which {thing} {predicate}?",
    "Name the {thing} that {predicate}.",
    "Identify the {thing} {whose} {is} {value}.",
    "What is the name of the {thing} that {predicate}?",
    "The {full} of {a_thing} is {value}. Which {thing} is it?",
    "{A_thing} {predicate}. What is it?",
    "Can you name the {thing} that {predicate}?",
    "What is the {thing} that {predicate} called?",
)
WHOSE_ANSWERS = (
    *("{name}", "{name}", "It is {called}.", "The {thing} is {name}."),
    *("This is {called}.", "The answer is {called}.", "{Opening} {predicate}."),
)

# Completion: a text that stops before a value, and its end.
STEMS = (
    ("The {of} {is}", " {value}."),
    ("For {called}, the {full} {is}", " {value}."),
    ("{Opening} {before_value}", " {value}{after_value}."),
    ("According to {authority}, the {of} {is}", " {value}."),
    ("{Label} of {called}{condition}:", " {bare}"),
    ("Fill in the blank: The {of} {is} ____.\n", "{value}"),
    ("Complete the sentence: The {of} {is}", " {value}."),
    ("Complete the following sentence.\nFor {called}, the {full} {is}", " {value}."),
    ("{Heading}: {name}\n{Full}:", " {bare}"),
    ("| Property | Value |\n| --- | --- |\n| {Heading} | {name} |\n| {Full} |", " {bare} |"),
    ("Data sheet: {name}\n- {Full}:", " {bare}"),
    ("{Heading}\t{Full}\n{name}\t", "{bare}"),
    ("The record for {called} gives {its} as", " {value}."),
    ('{{{heading}: {name}, "property": {full}, "value":', " {value}}}"),
)
JSON_STEM = len(STEMS) - 1  # its fields are quoted as JSON strings

# Multiple choice.
CHOICE_OF_VALUE = (
    "What {is} the {of}?",
    "Which of the following is the {of}?",
    "{question}",
    "Choose the option that gives the {of}.",
    "Select the correct {full} for {called}.",
    "One of the following is the {of}. Which one?",
    "Pick the correct {full} for {called}.",
    "Which option gives the {of}?",
    "Only one of the following is the {of}. Which one is it?",
    "Consider {called}. Which of the following is {its}?",
)
CHOICE_OF_NAME = (
    "Which of these {things} {predicate}?",
    "Which of the following {predicate}?",
    "Select the {thing} that {predicate}.",
    "Which {thing} {predicate}?",
    "One of these {things} {predicate}. Which one?",
    "Find the {thing} that {predicate}.",
    "The {of_one} {is} {value}. Which one is it?",
    "For which of these {things} does the {part} have {part_value}?",
    "Identify the {thing} {whose} {is} {value}.",
)
LABELS = (  # an option with its mark, and the mark in an answer
    ("{letter}. {option}", "{letter}"),
    ("{letter}) {option}", "{letter}"),
    ("({letter}) {option}", "({letter})"),
    ("[{letter}] {option}", "[{letter}]"),
    ("{number}. {option}", "{number}"),
    ("{number}) {option}", "{number}"),
    ("({number}) {option}", "({number})"),
)
CHOICE_ANSWERS = (
    *("{mark}", "{mark}", "The answer is {mark}.", "{line}", "{line}"),
    *("The correct answer is {mark}.", "The correct option is {mark}: the {of} {is} {value}."),
    "The correct option is {mark}: {called} {predicate}.",
)

# Ranking. The list follows in the form of LISTS.
RANKINGS = (
    "Rank these {things} by {by}, {order}",
    "Sort the following {things} by {by}, {order}",
    "Put these {things} in order of {by}, {from_to}",
    "Order the following {things} by {by}, {from_to}",
    "Arrange the following in order of {by}, {from_to}",
    "List the following {things} by {by}, {order}",
    "Sort these {things} by {by}, {order}",
    "Compare the following {things} by {by} and list them {in_order}",
)
EXTREMES = (
    "Which of these {things} {superior}?",
    "Which of the following {superior}?",
    "Find the {thing} {superlative}",
    "Of these {things}, name the one {superlative}",
    "Identify the {thing} {superlative}",
    "Compare the following {things}. Which {superior}?",
    "Among these {things}, which one {superior}?",
)
ORDERS = (  # falling, rising; the first two suit a sentence with the word "order", all but the first "list them"
    ("{high} first", "from {high} to {low}", "in decreasing order", "in descending order"),
    ("{low} first", "from {low} to {high}", "in increasing order", "in ascending order"),
)
RANKED = (
    *("{in_line}", "{in_line}", "{values_in_line}", "The order is {chain}.", "In order: {series}."),
    *("In order:\n{by_line}", "The order is:\n{by_line}", "In order, with values:\n{values_by_line}"),
)
LISTS = ((":\n- ", "\n- "), (":\n", "\n"), (":\n* ", "\n* "), (": ", "; "))  # before things and between them
LISTS_BY_LINE = 3  # of them need no separator that a name can contain, and may follow a question
EXTREME_ANSWERS = (
    *("{name}", "{name}", "{name_and_value}", "It is {called}{found}."),
    *("{Opening} {superior}{as_found}.", "The {extreme} value is {value}, that of {called}."),
)

# A prompt and its answer: under these labels a text asks, instructs, or talks to someone.
LAYOUTS = (
    ("{prompt}", "\n{answer}\n"),
    ("{prompt}", "\n\n{answer}\n"),
    ("User: {prompt}", "\nAssistant: {answer}\n"),
    ("**User:** {prompt}", "\n\n**Assistant:** {answer}\n"),
    ("Prompt: {prompt}", "\nResponse: {answer}\n"),
    ("Question: {prompt}", "\nAnswer: {answer}\n"),
    ("### Question\n{prompt}", "\n\n### Answer\n{answer}\n"),
    ("**Question:** {prompt}", "\n\n**Answer:** {answer}\n"),
    ("[Question] {prompt}", "\n[Answer] {answer}\n"),
    ("Q: {prompt}", "\nA: {answer}\n"),
    ("Exercise: {prompt}", "\nSolution: {answer}\n"),
    ("Problem:\n{prompt}", "\n\nAnswer:\n{answer}\n"),
    ("Task: {prompt}", "\nAnswer: {answer}\n"),
    ("Instruction: {prompt}", "\nResponse: {answer}\n"),
    ("### Instruction\n{prompt}", "\n\n### Response\n{answer}\n"),
)
CONVERSATION = ("I need", "I'm", "Can you", "Could you", "Do you", "Please")  # openings of a prompt
OF_CONVERSATION, OF_QUESTIONS, OF_CHOICES, OF_INSTRUCTIONS = (
    range(5),
    range(12),
    (*range(9), 10, 11),  # "A: B" would name two options
    (*range(5), *range(10, 15)),
)


def layouts(prompt: str, choice: bool) -> Sequence[int]:
    """The places of the layouts that suit a prompt; choice: marked options follow it."""
    if prompt.startswith(CONVERSATION):
        places: Sequence[int] = OF_CONVERSATION
    elif "?" in prompt:
        places = OF_CHOICES if choice else OF_QUESTIONS
    else:
        places = OF_INSTRUCTIONS
    return places[1:] if "\n" in prompt else places  # an answer on the line after a list would look like a part of it
