"""Where terms are defined."""

from reports.page.glossary import Glossary
from reports.page.model import Head, Section, Table


def test_heads_find_their_definition_or_anothers() -> None:
    table = Table("caption", [Head("Speedup")], [])
    times = Section("times", "", "", tables=[table], definitions=(("Speedup", "a"), ("p", "b")))
    phases = Section("phases", "", "", tables=[table], definitions=(("Draft, accept, other", "c"),))
    bare = Section("bare", "", "", definitions=(("Secret", "not printed without a table"),))
    glossary = Glossary([times, phases, bare])
    assert glossary.of(times, Head("speedup")) == "def-times-speedup"
    assert glossary.of(phases, Head("Accept")) == "def-phases-draft-accept-other"
    assert glossary.of(phases, Head("Speedup")) == "def-times-speedup"  # of another section
    assert glossary.of(phases, Head("Speed", term="Speedup")) == "def-times-speedup"
    assert glossary.of(times, Head("Secret")) is None
    assert glossary.of(times, Head("Pairs")) is None
