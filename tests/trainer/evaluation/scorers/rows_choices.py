"""Answers to multiple choices, and the letters that published code finds in them.

VLMEvalKit's utils/matching_util.py and dataset/image_mcq.py, compute_accuracy.py of TIGER-AI-Lab/MMLU-Pro, and
mmmu-pro/evaluate.py of MMMU-Benchmark/MMMU, with None for its random letter; ../published_code.py prints them.
"""

OPTIONS = {"A": "red", "B": "blue sky", "C": "green", "D": "I"}
# answer, VLMEvalKit's option, XLRS-Bench's letters, MMLU-Pro's letter, MMMU-Pro's letter
ANSWERS = [
    ("B", "B", "B", "B", "B"),
    ("(C)", "C", "C", "C", "C"),
    ("The answer is B", "B", "B", "B", "B"),
    ("the answer is **B** because A was wrong, and so on", "B", "ABCDE", "A", "A"),
    ("I think it is B because of C", "D", "ABCE", "C", "C"),
    ("Answer: D", "D", "ADE", "D", "D"),
    ("A or C? Answer: (C)", None, "C", "C", "C"),
    ("red", "A", "", None, None),
    ("It is the blue sky, as anyone can see.", None, "", None, "B"),
    ("red or blue sky", None, "", None, None),
    ("Cannot determine the answer", "Z", "ACDE", None, None),
    ("", None, "", None, None),
    ("B. blue sky", "B", "BE", "B", "B"),
    ("a) red", "A", "", None, None),
    ("(a) and (B)", "B", "AB", "B", "B"),
    ("Answer: none of A and B", None, "ABDE", "B", "B"),
    ("answer is (E)", "D", "E", "E", None),
    ("It must be C.", "C", "BCE", "C", "C"),
    ("Z", "Z", "", None, None),
    ("A B C", None, "ABC", "C", "C"),
]
