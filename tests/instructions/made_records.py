"""A made record of each data set of the templates, and what becomes of it where every marker is the first of its list."""

from typing import Any, NamedTuple


class Made(NamedTuple):
    name: str
    record: dict[str, Any]
    prompt: str
    answer: str
    query: str
    references: tuple[str, ...] = ()  # beside the answer
    id: str = ""  # "": a hash


FIVE = ["bank", "library", "mall", "forest", "river"]
FIVE_LINES = "A. bank\nB. library\nC. mall\nD. forest\nE. river"
REASON = "Let's think step by step."

MADE = [
    Made(
        "oasst1", {"id": "m3", "questions": ["Hi!", "Where is Oslo?"], "answers": ["Hello.", "In Norway.\nIt is the capital."]},
        "Q: Hi!\nA: Hello.\nQ: Where is Oslo?\nA:", "In Norway.\nIt is the capital.", "Where is Oslo?", id="m3",
    ),
    Made(
        "commonsense_qa",
        {"id": "c1", "question": "Where do books stand?", "question_concept": "books",
         "choices": {"label": list("ABCDE"), "text": FIVE}, "answerKey": "B"},
        f"Q: Where do books stand?\n{FIVE_LINES}\nA:", "B. library", "Where do books stand?", ("library",), "c1",
    ),
    Made(
        "math_qa",
        {"Problem": "What is 7 * 6 ?", "Rationale": "7 * 6 = 42", "correct": "c", "category": "general",
         "options": "a ) 36 , b ) 40.5 , c ) 42 , d ) 48 , e ) none of these"},
        "Q: What is 7 * 6 ?\nA. 36\nB. 40.5\nC. 42\nD. 48\nE. none of these\nA:", "C. 42", "What is 7 * 6 ?", ("42",),
    ),
    Made(
        "web_questions", {"url": "u", "question": "who swam?", "answers": ["Ann", "Bob"]},
        "Q: who swam?\nA:", "Ann", "who swam?", ("Bob",),
    ),
    Made(
        "wiki_qa",
        {"question_id": "Q1", "question": "how deep is it", "document_title": "Lake", "answer": "It is 5 m deep.", "label": 1},
        "Q: how deep is it\nA:", "It is 5 m deep.", "how deep is it",
    ),
    Made(
        "yahoo_answers_qa",
        {"id": "20", "question": "How do I peel it?", "answer": "With a knife.", "nbestanswers": ["With a knife.", "No."],
         "main_category": "Food"},
        "Q: How do I peel it?\nA:", "With a knife.", "How do I peel it?", id="20",
    ),
    Made(
        "freebase_qa",
        {"Question-ID": "F-1", "RawQuestion": "Who wrote it?",
         "Parses": {"Parse-Id": ["F-1.P0"], "Answers": [{"AnswersMid": ["m.1"], "AnswersName": [["ann low", "a. low"]]}]}},
        "Q: Who wrote it?\nA:", "ann low", "Who wrote it?", ("a. low",), "F-1",
    ),
    Made(
        "ms_marco", {"query_id": 19, "query": "cost of a roof", "answers": ["$ 5"], "passages": {"passage_text": ["…"]}},
        "Q: cost of a roof\nA:", "$ 5", "cost of a roof", id="19",
    ),
    Made(
        "drop",
        {"passage": "Ann scored twice.", "question": "Who scored?", "query_id": "d1",
         "answers_spans": {"spans": ["Ann", "Bob"], "types": ["span", "span"]}},
        "Ann scored twice.\nQ: Who scored?\nA:", "Ann, Bob", "Who scored?", id="d1",
    ),
    Made(
        "narrativeqa",
        {"document": {"id": "n1", "summary": {"text": "Ann leaves.", "title": "T"}}, "question": {"text": "Who leaves?"},
         "answers": [{"text": "Ann"}, {"text": "Ann does"}]},
        "Ann leaves.\nQ: Who leaves?\nA:", "Ann", "Who leaves?", ("Ann does",),
    ),
    Made(
        "newsqa", {"context": "A ship sank.", "question": "What sank?", "answers": ["A ship"], "key": "k", "labels": []},
        "A ship sank.\nQ: What sank?\nA:", "A ship", "What sank?",
    ),
    Made(
        "pubmed_qa",
        {"pubid": 21, "question": "Does it help?", "context": {"contexts": ["We gave it.", "They slept."], "labels": ["A", "B"]},
         "long_answer": "It does.", "final_decision": "yes"},
        "We gave it.\nThey slept.\nQ: Does it help?\nA:", "yes", "Does it help?", id="21",
    ),
    Made(
        "quail",
        {"id": "q1", "context": "Bob ate.", "question": "Who ate?", "question_type": "Factual",
         "answers": ["Ann", "Bob", "Cem", "not enough information"], "correct_answer_id": 1},
        "Bob ate.\nQ: Who ate?\nA. Ann\nB. Bob\nC. Cem\nD. not enough information\nA:", "B. Bob", "Who ate?", ("Bob",), "q1",
    ),
    Made(
        "quarel",
        {"id": "r1", "answer_index": 1, "question": "Where does it glide farther? (A) on sand (B) on ice", "logical_forms": []},
        "Q: Where does it glide farther?\nA. on sand\nB. on ice\nA:", "B. on ice", "Where does it glide farther?", ("on ice",), "r1",
    ),
    Made(
        "squad_v2",
        {"id": "s1", "title": "Oslo", "context": "Oslo grew.", "question": "What grew?", "answers": {"text": ["Oslo"], "answer_start": [0]}},
        "Oslo grew.\nQ: What grew?\nA:", "Oslo", "What grew?", id="s1",
    ),
    Made(
        "squad_v2",
        {"id": "s2", "title": "Oslo", "context": "Oslo grew.", "question": "What shrank?", "answers": {"text": [], "answer_start": []}},
        "Oslo grew.\nQ: What shrank?\nA:", "I don't know.", "What shrank?", id="s2",
    ),
    Made(
        "cnn_dailymail", {"id": "n", "article": "A ship sank.\nAll live.", "highlights": "Ship sinks .\nAll live ."},
        "Summarize this article:\nA ship sank.\nAll live.\nA:", "Ship sinks .\nAll live .", "A ship sank.\nAll live.", id="n",
    ),
    Made(
        "aqua_rat",
        {"question": "Half of 8?", "options": ["A)2", "B)4", "C)8"], "rationale": "8 / 2 = 4", "correct": "B"},
        f"{REASON}\nQ: Half of 8?\nA. 2\nB. 4\nC. 8\nA:", "8 / 2 = 4\nThe answer is B. 4", "Half of 8?", ("B. 4", "4"),
    ),
    Made(
        "ecqa",
        {"q_no": "e1", "q_text": "Where is money?", "q_ans": "bank", "taskA_pos": "…", "taskB": "Banks keep money.",
         **{f"q_op{place + 1}": text for place, text in enumerate(FIVE)}},
        f"{REASON}\nQ: Where is money?\n{FIVE_LINES}\nA:", "Banks keep money.\nThe answer is A. bank", "Where is money?",
        ("A. bank", "bank"), "e1",
    ),
    Made(
        "gsm8k", {"question": "How many?", "answer": "48/2 = <<48/2=24>>24.\nAnd 24+1 = <<24+1=25>>25.\n#### 25"},
        f"{REASON}\nQ: How many?\nA:", "48/2 = 24.\nAnd 24+1 = 25.\nThe answer is 25", "How many?", ("25",),
    ),
    Made(
        "math",
        {"problem": "Find $x$.", "level": "Level 1", "type": "Algebra", "solution": "As $2x=1$, $x=\\boxed{\\frac{1}{2}}$."},
        f"{REASON}\nQ: Find $x$.\nA:", "As $2x=1$, $x=\\boxed{\\frac{1}{2}}$.\nThe answer is \\frac{1}{2}", "Find $x$.", ("\\frac{1}{2}",),
    ),
    Made(
        "strategyqa",
        {"qid": "y1", "term": "Ann", "question": "Could Ann fly?", "answer": False, "facts": ["Ann was a cat.", "Cats do not fly."]},
        f"{REASON}\nQ: Could Ann fly?\nA:", "Ann was a cat. Cats do not fly.\nThe answer is no", "Could Ann fly?", ("no",), "y1",
    ),
    Made("questions", {"id": "7", "question": "who?", "answer": "Ann"}, "Q: who?\nA:", "Ann", "who?", id="7"),
    Made("plain_text", {"first": "Once upon", "rest": "a time."}, "Once upon", "a time.", "Once upon"),
]  # fmt: skip

COQA = {
    "source": "race", "story": "Ann has a cat.", "questions": ["Who has a cat?", "Is it a dog?"],
    "answers": {"input_text": ["Ann", "no"], "answer_start": [0, -1], "answer_end": [3, -1]},
}  # fmt: skip
