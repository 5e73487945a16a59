from __future__ import annotations

from pathlib import Path

import pytest

from mining.common.errors import InputError
from mining.common.task import N_DISTRACTORS, read_task, task_files

HEADER = """format: 1
name: t
version: 1
license: CC0
languages: {a: A, b: B}
instruction: "From {source_language} to {target_language}.\\n"
example: "{source} = {target}\\n"
query: "{source} ="
answer: " {target}"
concepts: c.tsv
"""


def write(tmp_path: Path, rows: list[str], header: str = HEADER) -> Path:
    (tmp_path / "task.yaml").write_text(header)
    (tmp_path / "c.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path / "task.yaml"


def test_prompt_and_draws(tmp_path: Path) -> None:
    rows = ["id\tpos\tclass\ta\tb\tb_alt\texample"]
    rows += [f"c{i}\tnoun\tk\tx{i}\ty{i}\tz{i}\t{'no' if i == 0 else 'yes'}" for i in range(12)]
    task = read_task(write(tmp_path, rows))
    concept = task.concepts[3]
    draws = [task.draw_examples("a", "b", concept, 5, draw, seed=1) for draw in range(5)]
    assert draws == [task.draw_examples("a", "b", concept, 5, draw, seed=1) for draw in range(5)]
    assert len({tuple(c.id for c in draw) for draw in draws}) == 5
    for draw in draws:
        assert len({c.id for c in draw}) == 5
        assert concept not in draw
        assert task.concepts[0] not in draw
    one, two = draws[0][:2]
    text = task.prompt("a", "b", [one, two], concept.words["a"])
    assert text == (
        f"From A to B.\n{one.words['a']} = {one.words['b']}\n"
        f"{two.words['a']} = {two.words['b']}\nx3 ="
    )


def test_distractors_are_siblings_and_never_correct(tmp_path: Path) -> None:
    rows = ["id\tpos\tclass\ta\tb\tb_alt"]
    rows += [f"n{i}\tnoun\tk1\tx{i}\ty{i}\t" for i in range(11)]
    rows += [f"m{i}\tnoun\tk2\tu{i}\tv{i}\t" for i in range(3)]
    rows += ["v\tverb\tk1\tw\tw2\t", "same\tnoun\tk1\tother\tY0\ty0bis", "alt\tnoun\tk1\tq\tr\ty0"]
    task = read_task(write(tmp_path, rows))
    found = task.distractors("a", "b", task.concepts[0])
    assert len(found) == N_DISTRACTORS
    assert found == task.distractors("a", "b", task.concepts[0])
    assert set(found) <= {f"y{i}" for i in range(1, 11)}  # same class first, none that means y0


def test_distractors_to_avoid_and_copies_are_left_out(tmp_path: Path) -> None:
    rows = ["id\tpos\tclass\ta\tb"]
    rows += [f"n{i}\tnoun\tk\tx{i}\ty{i}" for i in range(12)]
    rows += ["copy\tnoun\tk\tz\tX0"]  # looks like the source word x0
    path = write(tmp_path, rows, HEADER + "avoid: avoid.tsv\n")
    (tmp_path / "avoid.tsv").write_text(
        "source_lang\ttarget_lang\tid\tsibling\na\tb\tn0\tn5\nb\ta\tn0\tn6\n"
    )
    assert set(task_files(path)) == {"task.yaml", "c.tsv", "avoid.tsv"}
    task = read_task(path)
    found = {"ab": set[str](), "ba": set[str]()}
    for direction, words in found.items():
        source, target = direction
        words.update(task.distractors(source, target, task.concepts[0]))
        assert len(words) == N_DISTRACTORS
    # Eleven siblings, one of them avoided in each direction; "X0" would be a copy of x0.
    assert found["ab"] <= {f"y{i}" for i in range(1, 12) if i != 5}
    assert found["ba"] <= {f"x{i}" for i in range(1, 12) if i != 6} | {"z"}


def test_avoided_concepts_must_exist(tmp_path: Path) -> None:
    rows = ["id\tpos\tclass\ta\tb", "x\tn\tk\tw\tv"]
    path = write(tmp_path, rows, HEADER + "avoid: avoid.tsv\n")
    (tmp_path / "avoid.tsv").write_text("source_lang\ttarget_lang\tid\tsibling\na\tb\tx\ty\n")
    with pytest.raises(InputError, match=r"avoid\.tsv:2: the task has no sibling 'y'"):
        read_task(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["id\tpos\tclass\ta"], r"c\.tsv:1: the columns \['b'\]"),
        (["id\tpos\tclass\ta\tb", "x\tn\tk\tw\t"], r"c\.tsv:2: b is empty"),
        (["id\tpos\tclass\ta\tb", "x\tn\tk\tw\tv", "x\tn\tk\tw\tv"], r"c\.tsv:3: the id 'x'"),
    ],
)
def test_bad_tables_are_refused_with_their_line(
    tmp_path: Path, rows: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_task(write(tmp_path, rows))


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="extra"):
        read_task(write(tmp_path, ["id"], HEADER + "extra: 1\n"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "languages: {a: A, b: B}",
            'languages: {a: A, "../../b": B}',
            r"languages: found '\.\./\.\./b'",
        ),
        ("languages: {a: A, b: B}", "languages: {a: A, no: Norwegian}", "in quotes"),
        ("languages: {a: A, b: B}", "languages: [a, b]", "languages: found"),
        ('" {target}"', '" {target.__class__}"', r"answer: found \{target\.__class__"),
        ('" {target}"', '" {target:>9999999999}"', "answer: found"),
        ('" {target}"', '" {target"', "answer: not a template"),
        ("version: 1", "version: [1]", "version: found"),
        ("concepts: c.tsv", "concepts: 5", "concepts: found 5"),
    ],
)
def test_what_a_task_may_say_is_limited(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Codes name files, and templates could reach into our objects or spell gigabytes."""
    path = write(tmp_path, ["id\tpos\tclass\ta\tb", "x\tn\tk\tw\tv"])
    assert read_task(path).name == "t"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    for reader in (read_task, task_files):
        with pytest.raises(InputError, match=message):
            reader(path)


@pytest.mark.parametrize("table", [b"\xff\xfe", b"x" * (1 << 18)])
def test_a_table_that_is_none(tmp_path: Path, table: bytes) -> None:
    path = write(tmp_path, ["id\tpos\tclass\ta\tb"])
    (tmp_path / "c.tsv").write_bytes(b"id\tpos\tclass\ta\tb\n" + table + b"\tn\tk\tw\tv\n")
    with pytest.raises(InputError, match=r"c\.tsv"):
        read_task(path)
