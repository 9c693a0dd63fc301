# SPDX-License-Identifier: Apache-2.0
"""Two rows of every published set, in the shape of its columns; the words are ours."""


def said(content, role="assistant"):
    return {"role": role, "content": content}


def asked(content):
    return said(content, "user")


def community_row(person, preferred, second=None):
    """A conversation of one turn, or of two."""
    row = {
        "conversation_id": f"c-{person}", "annotator_id": person, "assigned_lang": "en", "wave": 1,
        "annotator_age": "18-30", "annotator_gender": "female", "annotator_education_level": "degree",
        "annotator_political": "left", "annotator_ethnicity": "x", "annotator_country": "france",
        "is_pregenerated_first_prompt": True, "in_balanced_subset": False,
    }  # fmt: skip
    for turn, choice in zip(("first", "second", "third", "fourth"), (preferred, second, None, None), strict=True):
        there = choice is not None
        row[f"{turn}_turn_prompt"] = f"{turn}?" if there else None
        row[f"{turn}_turn_preferred_response"] = choice
        row[f"{turn}_turn_feedback"] = ""
        for letter in "abcd":
            row[f"{turn}_turn_response_{letter}"] = f"{turn} {letter}<|end_of_text|>" if there else None
    return row


def collective_row(personal, world):
    return {
        "prompt_id": "p1",
        "prompt": {"id": "p1", "messages": [said("Be kind.", "system"), asked("Is it right?")]},
        "responses": [{"response_index": x, "messages": [said(f"reply {x}")]} for x in "ABCD"],
        "metadata": {
            "assessments": [
                {
                    "conversation_id": "p1",
                    "annotator_id": "ann",
                    "importance": "very",
                    "ranking_blocks": {
                        "personal": [{"ranking": personal, "rationale": "r"}],
                        "world": [{"ranking": world, "rationale": "r"}],
                        "unacceptable": [],
                    },
                }
            ]
        },
    }


def prism_row(turn, within, score, chosen, person="user7"):
    return {
        "utterance_id": f"ut{turn}{within}", "interaction_id": f"int{turn}", "conversation_id": "c1",
        "user_id": person, "turn": turn, "within_turn_id": within, "conversation_type": "unguided",
        "user_prompt": f"prompt {turn}", "model_response": f"reply {turn}-{within}", "model_name": "m",
        "model_provider": "p", "score": score, "if_chosen": chosen, "included_in_balanced_subset": True,
    }  # fmt: skip


def battle(winner, who, replies=("A", "B"), turns=1):
    both = [[part for n in range(turns) for part in (asked(f"q{n}"), said(f"{r}{n}"))] for r in replies]
    return {
        "question_id": "1", "model_a": "x", "model_b": "y", "winner": winner, "conversation_a": both[0],
        "conversation_b": both[1], "turn": turns, "language": "English", **who,
    }  # fmt: skip


def summaries_row(choice=1, **info):
    info = {
        "id": "t3",
        "post": "A long post.",
        "title": "Title",
        "subreddit": "AskX",
        "site": None,
        "article": None,
    } | info
    return {
        "info": info,
        "summaries": [{"text": f" {text} ", "policy": "sup", "note": None} for text in ("one", "two")],
        "choice": choice, "worker": "W1", "batch": "b", "split": "train", "extra": {"confidence": None},
    }  # fmt: skip


MODELS = (
    "gemma_2b gemma_7b mistral_raft mistral_ray mistral_weqweasdas llama3_sfairx oasst_deberta_v3 beaver_7b "
    "oasst_pythia_7b oasst_pythia_1b"
).split()


def personal_row(number):
    """Model m likes reply i by `(i + m + number) % 8`."""
    row = {"prompt": f"prompt {number}", "prompt_id": number}
    for i in range(1, 9):
        row[f"response_{i}"] = f"reply {number}-{i}"
        row |= {f"response_{i}_{model}": float((i + m + number) % 8) for m, model in enumerate(MODELS)}
    return row


def multipref_row():
    def annotation(who, verdict):
        return {"evaluator": who, "overall_pref": verdict, "helpful_pref": "B-is-clearly-better", "time_spent": 9}

    return {
        "comparison_id": "1", "prompt_id": "1", "text": "prompt", "completion_a": "A!", "completion_b": "B!",
        "model_a": "x", "model_b": "y", "source": "s",
        "normal_worker_annotations": [annotation("w1", "A-is-clearly-better"), annotation("w2", "Tie")],
        "expert_worker_annotations": [annotation("w3", "B-is-slightly-better")],
    }  # fmt: skip


def helpsteer_row():
    judgement = {"reasoning": "r", "feedback1": "f", "feedback2": "f"}
    return {
        "domain": "general", "language": "english", "context": [asked("prompt")], "response1": "one",
        "response2": "two", "overall_preference": 1,
        "individual_preference": [{"score": s, **judgement} for s in (-2, 0, 3)],
    }  # fmt: skip


def dices_row(rater, text, verdict):
    return {
        "rater_id": rater, "rater_gender": "x", "item_id": 1, "context": f"USER: {text}", "response": f"BOT: {text}",
        "Q_overall": verdict, "Q2_harmful_content_overall": "No",
    }  # fmt: skip


def argilla_record(order, who="u1"):
    """Argilla 2, `records.to_json`."""
    return {
        "id": "r1", "status": "completed", "metadata": {}, "suggestions": {}, "vectors": {},
        "fields": {"question": "why?", "first": "one", "second": "two"},
        "responses": {"best": [{"value": order, "user_id": who}]},
    }  # fmt: skip


def label_studio_task(selected, who=10):
    return {
        "id": 1, "project": 83, "predictions": [], "data": {"question": "why?", "text1": "one", "text2": "two"},
        "annotations": [
            {
                "id": 1001, "completed_by": who, "was_cancelled": False, "ground_truth": False, "lead_time": 4.2,
                "result": [
                    {"from_name": "pw", "to_name": "text1", "type": "pairwise", "value": {"selected": selected}}
                ],
            }
        ],
    }  # fmt: skip


#: Name of the set -> two good rows, and what its reader has to be told.
SHAPES = {
    "community_alignment": ([community_row("a1", "response_b", "response_d"), community_row("a2", "response_a")], {}),
    "collective_alignment": ([collective_row("B>A=C=D", "A>B>C>D"), collective_row("D>A>B=C", "A=B=C=D")], {}),
    "prism": ([prism_row(0, 0, 20, False), prism_row(0, 1, 90, True)], {}),
    "arena": (
        [battle("model_a", {"judge_hash": "h1"}), battle("model_b", {"judge_hash": "h2"}, turns=2)],
        {},
    ),
    "mt_bench": (
        [battle("model_a", {"judge": "expert_1"}, turns=2), battle("model_b", {"judge": "author_2"}, turns=2)],
        {},
    ),
    "summarize_from_feedback": ([summaries_row(0), summaries_row(1)], {}),
    "plural": (
        [
            {"id": f"{n}", "country": country, "region_iso": "X", "prompt": "p", "pref": "yes", "dispref": "no",
             "survey_metadata": "{}"}
            for n, country in enumerate(("India", "Japan"))
        ],
        {},
    ),
    "personal_llm": ([personal_row(0), personal_row(1)], {}),
    "multipref": ([multipref_row(), multipref_row()], {}),
    "helpsteer3": ([helpsteer_row(), helpsteer_row()], {}),
    "dices": ([dices_row(7, "a", "No"), dices_row(7, "b", "Yes")], {}),
    "argilla": (
        [
            argilla_record([{"value": "second", "rank": 1}, {"value": "first", "rank": 2}]),
            argilla_record([{"value": "first", "rank": 1}, {"value": "second", "rank": 2}], "u2"),
        ],
        {"question": "best", "response_fields": ["first", "second"], "prompt_field": "question"},
    ),
    "label_studio": ([label_studio_task("left"), label_studio_task("right", 11)], {"prompt_field": "question"}),
    "ratings": (
        [{"annotator_id": "r1", "prompt": "p", "text": t, "score": s} for t, s in (("a", 1), ("b", 4.5))],
        {},
    ),
    "rankings": (
        [
            {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [1, 2, None], "annotator_id": "x"},
            {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [2, 1, 2], "annotator_id": "y"},
        ],
        {},
    ),
}  # fmt: skip
