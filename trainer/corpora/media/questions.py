"""Questions about an image or a signal, and where their answers are in a text."""

import re

QUESTION = "Question: {question} Answer: {answer}.\n"
ANSWER = re.compile(r"Question: ([^?\n]*\?) Answer: ([^.\n]*)\.\n")  # groups: the question, its answer


def asked(**answers: str) -> str:
    """The lines of questions with their answers. answers: by the keys of `QUESTIONS`."""
    return "".join(QUESTION.format(question=QUESTIONS[key], answer=answer) for key, answer in answers.items())


QUESTIONS = {
    "element": "Which element does it have besides carbon and hydrogen?",
    "rings": "How many rings does it have?",
    "recorded": "What was recorded?",
    "quarter": "In which quarter is its highest value?",
}
