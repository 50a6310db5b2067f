"""A question set's file, read line by line: one JSON object a line, in FastChat's form."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypedDict

from bench.errors import UsageError, flat
from bench.files import sha256_of_bytes

if TYPE_CHECKING:
    from datasets import Dataset

UNCATEGORISED: Final = "uncategorised"


@dataclass(frozen=True)
class Questions:
    """A loaded set, or a selection from it; `sha256` is that of the whole file.

    `dataset` has the columns question_id (string), category (string) and turns (list of strings).
    """

    name: str
    sha256: str
    dataset: Dataset


class Question(TypedDict):
    question_id: str
    category: str
    turns: list[str]


def parse(name: str, raw: bytes, origin: str) -> Questions:
    """The questions in `raw`; `origin` is what error messages call the file.

    UsageError, with the line number, for anything that is not a question in FastChat's form.
    """
    import datasets  # here, since it is slow to import

    rows: list[Question] = []
    lines: dict[str, int] = {}  # question_id -> number of its line
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{origin}, line {number}"
        row = _question(line, where)
        if row["question_id"] in lines:
            raise UsageError(
                f"{where}: question_id {row['question_id']!r} is also that of"
                f" line {lines[row['question_id']]}; give each question its own"
            )
        lines[row["question_id"]] = number
        rows.append(row)
    if not rows:
        raise UsageError(f"{origin}, line 1: the file is empty; it needs one question a line")
    text = datasets.Value("string")
    features = datasets.Features(question_id=text, category=text, turns=datasets.List(text))
    dataset = datasets.Dataset.from_list(rows, features=features)
    return Questions(name, sha256_of_bytes(raw), dataset)


def _question(line: bytes, where: str) -> Question:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: malformed JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond any use
        raise UsageError(f"{where}: malformed JSON: {flat(error)}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a JSON object with question_id, category and turns")
    identity = value.get("question_id")
    if type(identity) is not int and not _is_text(identity):
        raise UsageError(f"{where}: question_id must be an integer or a non-blank string")
    category = value.get("category", "")
    if category != "" and not _is_text(category):
        raise UsageError(f"{where}: category must be a string")
    turns = value.get("turns")
    if not isinstance(turns, list) or not turns or not all(map(_is_text, turns)):
        raise UsageError(f"{where}: turns must be a list of one or more non-blank strings")
    return {
        "question_id": str(identity),
        "category": category or UNCATEGORISED,
        "turns": turns,
    }


def _is_text(value: object) -> bool:
    """A non-blank string that UTF-8 can encode: JSON escapes can spell lone surrogates."""
    return (
        isinstance(value, str)
        and value.strip() != ""
        and value == value.encode(errors="replace").decode()
    )
