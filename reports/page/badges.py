"""The badge of a row, from its audit alone.

A method earns "lossless: verified" by its outputs or its samples, not by its own declaration:

- "lossy": the method changes the output by design, so equality is not required.
- "not audited": there is no `audit.json`, it is of older records, it compared nothing of the row,
  or the row samples and no distribution was tested.
- "defects": an output differs and no tie explains it; or too many of its tokens are not the float32
  argmax; or a diverging prompt decoded again in float32 differs there; or the distribution test
  failed.
- "audited in part": no defect was found, but prompts of some records could not be reconstructed,
  fewer than 1,000 tokens were drawn, or they were drawn on another engine or device than the row's.
- greedy, float32: "lossless: verified (N answers)" where every answer equals the reference's, or
  differs first where both choices are within 1e-3 and agrees in float64.
- greedy, half precision: the same where every answer is equal; "lossless: verified, ties in bf16"
  (or fp16) where every first difference is a tie, the share of tokens that are not the float32
  argmax passed, and the diverging prompts that were decoded again in float32 on the row's engine
  and device, all or at least 8, are all equal there; otherwise "lossless: ties only".
- sampling: "lossless: verified (N tokens)" where the distribution test passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from reports.measures import Definitions
from reports.measures.matches import AuditRow, defective, elsewhere
from reports.page.model import Page, TableRow
from reports.read.companions import AUDITED
from reports.read.preparation import NAME

RERUNS = 8  # diverging prompts to decode again, where there are so many
TOKENS = 1000  # to draw
COMMAND = "python -m bench.audit"
SHORT = {"bfloat16": "bf16", "float16": "fp16"}


class Badge(NamedTuple):
    """`kind` is "good", "plain", "warn" or "bad"; `why` one sentence without a full stop."""

    text: str
    kind: str
    why: str


DEFINITIONS: Definitions = (
    (
        "Badge",
        "what the audit found. Verified: all ids are equal, or every difference is a tie that "
        "higher precision resolves; when sampling, the distribution test passed. Ties only: the "
        "proof in float32 is missing. Not audited: no audit of these records, or none of this row.",
    ),
)
RERUNS_DEFINED = (
    "Float32 reruns",
    "diverging prompts of a half-precision row, decoded again in float32 by the method and the "
    "reference, those with the largest gap first. Equal: only the precision made them differ.",
)
TEST_DEFINED = (
    "Distribution test",
    "answers are sampled in float32 for the run's two shortest prompts, each alone and followed by "
    "the reference's answer and the prompt again (so that drafts are accepted). Each token is "
    "compared with the target's exact distribution: with tokens in order of decreasing "
    "probability, its position on the scale of cumulative probability is uniform if the sampler is "
    "right. Chi-square over 10 equal cells, corrected by Holm's method over all samplers of the "
    "run, at level 0.001.",
)
AGREEMENT_DEFINED = (
    "Agreement",
    "of a lossy method: the mean share of an answer up to the first id that differs from the "
    "reference's of the same turn and repeat, of the longer of the two answers. Where answers are "
    "sampled, the agreement of the reference's own repeats is given with it.",
)
PERPLEXITY_DEFINED = (
    "Perplexity",
    "of a lossy method's answers under the target: exp of the mean negative log-probability of a "
    "token at temperature 1, in the run's precision; with it that of the reference's answers. "
    "Lower means more likely text, not better text: loops score low.",
)


def badge(page: Page, row: TableRow) -> Badge:
    """The badge of a table's row, which needs the columns of `NAME` and the facts
    `reference` and `lossy`."""
    run = next(run for run in page.runs if run.name == row["run"])
    if row["lossy"]:
        return Badge("lossy", "warn", "it changes the output by design")
    key = [row[name] for name in NAME[1:]]
    entry = next((e for e in run.audited if [e[name] for name in NAME[1:]] == key), None)
    if row["reference"] and not (entry and defective(entry)):
        return Badge("reference", "plain", "the others are compared with it")
    if run.audit != AUDITED:
        why = run.audit if run.audit != "not audited" else "the run holds no audit"
        return Badge("not audited", "plain", f"{why}; run {COMMAND}")
    if entry is None:
        what = f"its distribution was not tested; run {COMMAND}"
        greedy = "the reference has no answer to compare with"
        return Badge("not audited", "plain", what if row["temperature"] else greedy)
    return _sampling(entry) if row["temperature"] else _greedy(entry)


def _greedy(entry: AuditRow) -> Badge:
    compared, ties, defects = (entry[name] for name in ("compared", "ties", "defects"))
    reruns = entry.get("reruns") or {}
    if defects:
        return Badge("defects", "bad", f"{_answers(defects, compared)} differ without a tie")
    if reruns.get("defects"):
        why = f"{reruns['defects']} of {_prompts(reruns)} differ in float32 too"
        return Badge("defects", "bad", why)
    shares = entry.get("argmax") or {}
    if shares.get("passed") is False:
        return Badge("defects", "bad", _shares(shares))
    if not compared:
        return Badge("not audited", "plain", "no answer was compared")
    if entry.get("left_out"):
        why = f"{entry['left_out']} answers left out: their prompts could not be reconstructed"
        return Badge("audited in part", "plain", why)
    verified = f"lossless: verified ({compared:,} answers)"
    if entry.get("unexplained"):
        why = f"{_answers(entry['unexplained'], compared)} differ and are not explained"
        return Badge("not audited", "plain", f"{why}; run {COMMAND}")
    if not ties:
        return Badge(verified, "good", "all ids equal the reference's")
    if entry["dtype"] == "float32":
        why = f"{_answers(ties, compared)} differ at a near tie and agree in float64"
        return Badge(verified, "good", why)
    return _half(entry, shares, reruns)


def _half(entry: AuditRow, shares: Mapping[str, Any], reruns: Mapping[str, Any]) -> Badge:
    """Of a row in half precision whose differences are ties."""
    short = SHORT.get(entry["dtype"], entry["dtype"])
    tied = f"{_answers(entry['ties'], entry['compared'])} differ within the noise of {short}"
    missing = _missing(entry, shares, reruns)
    if missing:
        return Badge("lossless: ties only", "plain", f"{tied}; {missing}")
    why = f"{tied}; {_prompts(reruns)} were decoded again in float32 and agree; {_shares(shares)}"
    return Badge(f"lossless: verified, ties in {short}", "good", why)


def _missing(entry: AuditRow, shares: Mapping[str, Any], reruns: Mapping[str, Any]) -> str | None:
    """What a row whose differences are ties lacks to be verified."""
    done = reruns.get("rerun", 0)
    if reruns.get("failed"):
        return f"{reruns['failed']} reruns failed; run {COMMAND}"
    if not done or done < min(RERUNS, reruns["prompts"]):
        return f"too few were decoded again; run {COMMAND}"
    where = elsewhere(entry, reruns)
    if where:
        return f"they were decoded again on {where}; run {COMMAND} where the run was made"
    if not shares:
        return f"its tokens were not compared with the float32 argmax; run {COMMAND}"
    if not shares["passed"]:
        return f"{_shares(shares)}, in too few answers to verify it"
    return None


def _sampling(entry: AuditRow) -> Badge:
    test = entry.get("sampling")
    if not test or test.get("passed") is None:
        why = (test or {}).get("error") or f"its distribution was not tested; run {COMMAND}"
        return Badge("not audited", "plain", why)
    result = f"corrected p = {test['p_holm']:.2g} over {test['tokens']:,} tokens in {test['dtype']}"
    if not test["passed"]:
        return Badge(
            "defects", "bad", f"its samples do not follow the target's distribution: {result}"
        )
    why = f"its samples follow the target's distribution: {result}"
    if test.get("accepted_length"):
        why += f", {test['accepted_length']:.2f} a step"
    where = elsewhere(entry, test)
    if where:
        why = f"{why}; drawn by {where}; run {COMMAND} where the run was made"
        return Badge("audited in part", "plain", why)
    if test["tokens"] < TOKENS:
        return Badge("audited in part", "plain", f"{why}; a badge needs {TOKENS:,} tokens")
    return Badge(f"lossless: verified ({test['tokens']:,} tokens)", "good", why)


def _answers(count: int, whole: int) -> str:
    return f"{count:,} of {whole:,} answers"


def _prompts(reruns: Mapping[str, Any]) -> str:
    return f"{reruns['rerun']} of {reruns['prompts']} diverging prompts"


def _shares(shares: Mapping[str, Any]) -> str:
    own, reference = (f"{100 * shares[name]:.1f} %" for name in ("share", "reference_share"))
    return f"{own} of its tokens are not the float32 argmax, {reference} of the reference's"
