"""The words that records are told and asked in. Fields: {of} "melting point of NAME", {said} "melting point", {name},
{value} "454.10 K", {unit}, {thing} "compound", {things}, {authority}.

A name never begins a sentence and never takes an article, because "n-hexane" has no capital and nobody knows whether it
is "a" or "an"; {said} and {of} always follow "the", "its" or "each".
"""

# Narration: how a record opens, what follows, in which shape.
OPENINGS = (
    "Consider the {thing} {name}.",
    "This entry describes the {thing} {name}.",
    "Here is what is known about {name}.",
    "The following was recorded for {name}.",
    "The {thing} {name} is listed with these data.",
    "Some properties of {name} follow.",
    "Data for {name}:",
    "Of the {thing} {name} the following is on record.",
    "A note on {name}.",
    "What do we know about {name}?",
    "Let us look at {name}.",
    "A summary of the {thing} {name}:",
)
FIRST = ("The {of} is {value}.", "For {name}, the {said} is {value}.", "The recorded {of} is {value}.")
STATEMENTS = (
    "Its {said} is {value}.",
    "The {said} is {value}.",
    "Its {said} is given as {value}.",
    "The {said} is listed as {value}.",
    "As its {said}, {value} is reported.",
    "For the {said} one finds {value}.",
    "Reference data give {value} for the {said}.",
    "Its {said} amounts to {value}.",
    "The table lists {value} as the {said}.",
    "Its {said} has the value {value}.",
)
TEXT_STATEMENTS = (  # where the value is no number
    "Its {said} is {value}.",
    "The {said} is {value}.",
    "Its {said} is given as {value}.",
    "The {said} is listed as {value}.",
    "For its {said} one writes {value}.",
    "The entry gives {value} as its {said}.",
    "Under {said} one finds {value}.",
    "Its {said} reads {value}.",
)
SOURCES = (
    "These data come from {authority}.",
    "The values are those of {authority}.",
    "All of this is taken from {authority}.",
    "They stand in {authority}.",
)
SHAPES = ("{opening} {body}", "{opening}\n{body}", "{body}", "{opening}\n\n{body}")
CARDS = (
    *("{key}: {value}", "- {key}: {value}", "{key} = {value}"),
    *("| {key} | {value} |", "{key}\t{value}", "* {key} - {value}"),
)

# Question and answer.
QUESTIONS = (
    "What is the {of}?",
    "Give the {of}.",
    "State the {of}.",
    "Please tell me the {of}.",
    "Look up the {of}.",
    "I need the {of}. What is it?",
    "For {name}, what is the {said}?",
    "What {said} is recorded for {name}?",
    "Which {said} does the {thing} {name} have?",
    "Could you give me the {of}?",
    "Do you know the {of}?",
    "Find the {said} for the {thing} {name}.",
    "Consider {name}. What is its {said}?",
    "Report the {of}.",
    "Recall the {of}.",
    "The {thing} in question is {name}. Name its {said}.",
)
UNIT_HINTS = (" Answer in {unit}.", " Give the value in {unit}.", " State the unit.", " Use {unit}.")
SOURCE_HINTS = (" Go by {authority}.", " Use {authority}.", " The reference is {authority}.")
ANSWERS = (
    *("{value}", "{value}", "The {of} is {value}.", "It is {value}."),
    *("Its {said} is {value}.", "The answer is {value}."),
)
WHOSE = (
    "Which {thing} has the {said} {value}?",
    "Name the {thing} whose {said} is {value}.",
    "The {said} of a certain {thing} is {value}. Which one is it?",
    "A {said} of {value} belongs to which {thing}?",
    "Identify the {thing} with the {said} {value}.",
    "{value} is the {said} of a {thing}. Of which one?",
    "To which {thing} does the {said} {value} belong?",
    "What is the name of the {thing} with the {said} {value}?",
)
WHOSE_ANSWERS = (
    *("{name}", "{name}", "It is {name}.", "The {thing} is {name}."),
    *("This is {name}.", "The answer is {name}."),
)

# Completion: the text is one that goes on.
STEMS = (
    ("The {of} is", " {value}."),
    ("For {name}, the {said} is", " {value}."),
    ("In the entry for {name}, the {said} reads", " {value}."),
    ("Looking up {name}, one finds as its {said}", " {value}."),
    ("{Said} of {name}:", " {value}"),
    ("Fill in the blank: the {of} is ____.\n", "{value}"),
    ("Complete the sentence.\nThe {of} is ...\n", "... {value}."),
    ('Complete: "For the {thing} {name}, the {said} is ..."\n', "{value}"),
    ("Missing entry\nname: {name}\n{said}: ___\n", "{said}: {value}"),
    ("Finish this line of a data sheet on {name}.\n{said}:", " {value}"),
    ("If you look up the {of}, you will read", " {value}."),
    ('{{"name": {name}, "property": {said}, "value":', " {value}}}"),
)
JSON_STEM = len(STEMS) - 1  # its fields are quoted as JSON strings

# Multiple choice.
CHOICE_OF_VALUE = (
    "What is the {of}?",
    "Which of these is the {of}?",
    "Choose the {of}.",
    "Select the correct {said} for {name}.",
    "One of the following is the {of}. Which?",
    "For {name}, which {said} is correct?",
    "Pick the right {said} for the {thing} {name}.",
    "Mark the {of}.",
    "Only one of these values is the {of}. Which one?",
    "The {thing} {name}: which of the following is its {said}?",
)
CHOICE_OF_NAME = (
    "Which of these {things} has the {said} {value}?",
    "The {said} {value} belongs to which {thing}?",
    "Select the {thing} whose {said} is {value}.",
    "Which {thing} has {value} as its {said}?",
    "One of these {things} has the {said} {value}. Which?",
    "Find the {thing} with the {said} {value}.",
    "For which of the following is the {said} {value}?",
    "Pick the {thing} with {value} as its {said}.",
)
LABELS = (  # how options are marked, and how an answer names one
    ("{letter}. {option}", "{letter}"),
    ("{letter}) {option}", "{letter}"),
    ("({letter}) {option}", "({letter})"),
    ("[{letter}] {option}", "[{letter}]"),
    ("{number}. {option}", "{number}"),
    ("{number}) {option}", "{number}"),
    ("({number}) {option}", "({number})"),
    ("{letter}: {option}", "{letter}"),
)
CHOICE_ANSWERS = (
    *("{label}", "{label}", "The answer is {label}.", "{label}: {option}"),
    "{label}, because the {of} is {value}.",
)

# Ranking.
RANKINGS = (
    "Rank these {things} by {said}, {order}.",
    "Sort the following by their {said}, {order}.",
    "Put these {things} in order of {said}, {order}.",
    "Order the {things} below by {said}, {order}.",
    "Arrange by {said}, {order}:",
    "Here are some {things}. List them by {said}, {order}.",
    "By {said}, what is the order of these {things}, {order}?",
    "Compare the {said} of these {things} and list them {order}.",
)
EXTREMES = (
    "Which of these {things} has the {extreme} {said}?",
    "Among the following, which has the {extreme} {said}?",
    "Find the {thing} with the {extreme} {said}.",
    "Of these {things}, name the one whose {said} is {extreme}.",
    "Whose {said} is the {extreme} here?",
    "Compare the {said} of these {things}. Which has the {extreme}?",
)
ORDERS = {True: ("lowest first", "from lowest to highest", "in increasing order"),
          False: ("highest first", "from highest to lowest", "in decreasing order")}  # fmt: skip
EXTREME = {True: "lowest", False: "highest"}
RANKED = ("{ranked}", "{ranked}", "The order is:\n{ranked}", "With their values:\n{valued}", "{valued}")
LISTS = (("\n- ", "\n- "), ("\n", "\n"), ("\n* ", "\n* "), (" ", "; "))  # before things and between them
LISTS_BY_LINE = 3  # of them need no sign that could stand in a name
EXTREME_ANSWERS = (
    *("{name}", "{name}", "It is {name}, with {value}.", "{name} ({value})"),
    "The {extreme} is {value}, that of {name}.",
)

# How a prompt and its answer stand together.
LAYOUTS = (
    ("Question: {prompt}", "\nAnswer: {answer}\n"),
    ("Q: {prompt}", "\nA: {answer}\n"),
    ("{prompt}", "\n{answer}\n"),
    ("{prompt}", "\n\n{answer}\n"),
    ("User: {prompt}", "\nAssistant: {answer}\n"),
    ("Exercise. {prompt}", "\nSolution. {answer}\n"),
    ("### Question\n{prompt}", "\n\n### Answer\n{answer}\n"),
    ("Task: {prompt}", "\nResult: {answer}\n"),
    ("Student: {prompt}", "\nTeacher: {answer}\n"),
    ("Problem:\n{prompt}", "\n\nAnswer:\n{answer}\n"),
    ("[Question] {prompt}", "\n[Answer] {answer}\n"),
    ("Prompt: {prompt}", "\nReply: {answer}\n"),
)
