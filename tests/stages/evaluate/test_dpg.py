"""DPG-Bench: what depends on a no is no, categories are counted before that, prompts need their questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.types import BadRow, UserError
from stages.evaluate.judge import said_yes
from stages.evaluate.suite import Judged
from stages.evaluate.suite_dpg import Dpg

TABLE = b"""item_id,text,keywords,proposition_id,dependency,category_broad,,tuple,question_natural_language
p1,"a red cat, on a mat",,1,0,entity,whole,entity - whole (cat),Is there a cat?
p1,"a red cat, on a mat",,2,0,entity,whole,entity - whole (mat),Is there a mat?
p1,"a red cat, on a mat",,3,1,attribute,color,"attribute - color (cat, red)",Is the cat red?
p1,"a red cat, on a mat",,4,"1, 2",relation,spatial,"relation - spatial (cat, mat, on)",Is the cat on the mat?
p1,"a red cat, on a mat",,5,4,other,count,"other - count (cat, ==1)",Is it alone on the mat?
p2,a photo,,1,0,global,,global (photo),Is it a photo?
"""


def judged(*answers: str, item: int = 0, index: int = 0) -> Judged:
    question = list(Dpg().questions(TABLE))[item]
    verdict = Dpg().verdict(question, {"answers": list(answers)})
    return Judged(question=question.about["item_id"], task="dpg", index=index, verdict=verdict)


def test_the_graph_is_read() -> None:
    first, second = Dpg().questions(TABLE)
    assert first.prompt == "a red cat, on a mat" and first.about["questions"][3] == "Is the cat on the mat?"
    assert first.about["graph"][3] == {"id": 4, "category": ["relation", "relation - spatial"], "dependency": [1, 2]}
    assert second.about["graph"] == [{"id": 1, "category": ["global", "global"], "dependency": []}]


def test_a_no_goes_down_the_graph() -> None:
    assert judged("yes", "yes", "yes", "yes", "yes").verdict.score == 1
    assert judged("no", "yes", "yes", "yes", "yes").verdict.score == pytest.approx(1 / 5)
    assert judged("yes", "no", "yes", "yes", "yes").verdict.score == pytest.approx(2 / 5)
    assert judged("yes", "yes", "no", "yes", "no").verdict.score == pytest.approx(3 / 5)


def test_categories_before_means_over_pictures_then_prompts() -> None:
    some = [judged("no", "yes", "yes", "yes", "yes"), judged("yes", "yes", "no", "yes", "yes", index=1)]
    scores = Dpg().scores([*some, judged("yes", item=1)])
    assert scores["dpg"] == pytest.approx(100 * ((1 / 5 + 4 / 5) / 2 + 1) / 2)
    assert scores["entity"] == scores["entity - whole"] == 75 and scores["attribute - color"] == 50
    assert scores["relation"] == 100 and scores["global"] == 100
    assert Dpg().scores([]) == {}


def test_what_is_a_yes() -> None:
    assert all(map(said_yes, ("yes", "Yes.", " YES "))) and not any(map(said_yes, ("no", "", "yes, but", "maybe")))


def test_lines_say_the_same_as_the_table() -> None:
    line = (
        b'{"item_id": "p2", "text": "a photo", "questions":'
        b' [{"id": 1, "question": "Is it a photo?", "tuple": "global (photo)", "dependency": [0]}]}'
    )
    assert list(Dpg().questions(line)) == list(Dpg().questions(TABLE))[1:]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (None, r"dpg_bench\.csv"),
        (b'{"item_id": "0", "text": "a"}', "no questions"),
        (b"{oops", "no JSON"),
        (b"a,b\n1,2\n", "lack the column"),
        (TABLE.replace(b"entity - whole (mat)", b"").replace(b",2,0,", b",x,0,"), "cannot be read"),
        (TABLE.replace(b",3,1,", b",3,9,"), "depends on a question"),
        (TABLE.replace(b",3,1,", b",2,1,"), "asks twice"),
    ],
)
def test_what_cannot_be_asked(prompts: bytes | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list(Dpg().questions(prompts))


@pytest.mark.shared
def test_prompts_alone_are_refused(shared: Path) -> None:
    with pytest.raises(UserError, match="only a prompt"):
        list(Dpg().questions((shared / "prompts" / "dpg_bench" / "dpg_prompts.jsonl").read_bytes()))


def test_every_question_is_answered() -> None:
    with pytest.raises(BadRow, match="4 answers to 5"):
        judged("yes", "yes", "yes", "yes")
