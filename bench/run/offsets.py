"""Where in an answer's text its tokens end.

`tokenizers.decoders.DecodeStream` gives the same offsets for valid UTF-8, but not for answers with
incomplete or invalid byte sequences: it raises or loses characters, and takes quadratic time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

LOST = 64  # tokens without decodable text, after which the answer is decoded from its start,
GROWTH = 1.25  # and again each time it is longer by this factor


def offsets(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], counts: Sequence[int], text: str
) -> list[int]:
    """Characters of `text` that the first n ids give, for each n in `counts`.

    A character counts once its last byte is there. Only the newest ids are decoded at each count,
    so the work is linear in the answer's length; within a long stretch that cannot be decoded until
    it is complete, offsets may not advance.

    Args:
        decode: text of ids.
        ids: of the answer.
        counts: in ascending order.
        text: `decode(ids)`.
    """
    ends: list[int] = []
    start = known = 0  # ids[:known] give text[:end], ids[start:known] give `lead`, its last piece
    end, lead, again = 0, "", 0
    for count in counts:
        reached, lost = end, count - known >= LOST
        if lost and count >= again:
            start, lead, again = 0, text[:end], int(count * GROWTH)
            lost = False
        if count == len(ids):
            reached = len(text)
        elif count > known and not lost:
            given = decode(ids[start:count])
            new = given[len(lead) :] if given.startswith(lead) else None
            shown = _shared(new or "", text, end)
            reached += shown
            if new is not None and shown == len(new):
                piece = decode(ids[known:count])
                if piece and new.endswith(piece):  # alone it may lose its leading space
                    start, given = known, piece
                known, end, lead = count, reached, given
        ends.append(max(reached, ends[-1] if ends else 0))
    return ends


def _shared(piece: str, text: str, at: int) -> int:
    """Length of the common prefix of `piece` and `text[at:]`."""
    if text.startswith(piece, at):
        return len(piece)
    there = text[at : at + len(piece)]
    pairs = enumerate(zip(piece, there, strict=False))
    return next((place for place, (a, b) in pairs if a != b), len(there))
