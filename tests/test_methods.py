"""Methods by name: the syntax of parameters, canonical labels, decoders of other packages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest

from baselines.autoregressive import Autoregressive
from baselines.lookahead import Lookahead, LookaheadSettings
from bench.decoding.decoder import Block, Decoder, Settings, TargetInfo
from bench.decoding.sampling import Sampling
from bench.errors import UsageError
from bench.records import validation
from bench.records.runs import REFERENCE
from bench.run import methods
from bench.run.__main__ import main
from bench.run.methods import STOCK, discover, parse, resolve
from tests import harness
from tests.harness import install, run


@dataclass(frozen=True)
class GuestSettings(Settings):
    size: int
    rate: float = 0.5
    wide: bool = False
    kind: str = "plain"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"guest needs size >= 1, not {self.size}")


class Guest(Autoregressive):
    """A method of another package with a required parameter."""

    name: ClassVar[str] = "guest"
    takes_checkpoint: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = GuestSettings

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        yield from super().decode(prompt_ids, sampling)


class Homeless(Autoregressive):
    name: ClassVar[str] = "homeless"

    @classmethod
    def unavailable(cls, target: TargetInfo, settings: Settings) -> str | None:  # noqa: ARG003
        return f"no weights for {target.name}"


def labels(*texts: str) -> list[str]:
    return [method.label for method in resolve(texts)]


def points(monkeypatch: pytest.MonkeyPatch, *values: tuple[str, str]) -> None:
    """Installs entry points and nothing else."""
    found = [EntryPoint(name, value, methods.GROUP) for name, value in values]
    monkeypatch.setattr(methods, "entry_points", lambda group: found)  # noqa: ARG005


# The syntax


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lookahead", ("lookahead", {})),
        ("lookahead()", ("lookahead", {})),
        (" lookahead ( n = 5 , w=7 ) ", ("lookahead", {"n": "5", "w": "7"})),
        ("medusa(tree=a(b).json)", ("medusa", {"tree": "a(b).json"})),
        ("medusa(rate=1e-3,kind=a=b)", ("medusa", {"rate": "1e-3", "kind": "a=b"})),
    ],
)
def test_parse(text: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot read the method ''"),
        ("look ahead", "cannot read the method 'look ahead'"),
        ("look-ahead", "unknown method 'look-ahead'; did you mean 'lookahead'?"),
        ("lookahead(n=5", "cannot read the method"),
        ("lookahead(n=5)x", "cannot read the method"),
        ("lookahead(5)", "cannot read '5' in .*write key=value"),
        ("lookahead(n=)", "cannot read 'n='"),
        ("lookahead(=5)", "cannot read '=5'"),
        ("lookahead(n=5,n=6)", "sets 'n' twice"),
        ("lookahed", "unknown method 'lookahed'; did you mean 'lookahead'?"),
        ("transformer_generate", "did you mean 'transformers_generate'?"),
        ("xyz", "unknown method 'xyz'; choose one of transformers_generate, autoregressive"),
        ("lookahead(m=5)", "lookahead has no parameter 'm'; "),
        ("prompt_lookup(kk=5)", "prompt_lookup has no parameter 'kk'; did you mean 'k'?"),
        ("autoregressive(n=5)", "autoregressive has no parameter 'n'; it takes none"),
        ("transformers_generate(n=5)", "transformers_generate takes no parameters"),
        ("lookahead(checkpoint=a)", "lookahead has no parameter 'checkpoint'"),
        ("lookahead(n=five)", r"lookahead\(n=five\): a value of type int is needed"),
        ("lookahead(n=5.0)", "a value of type int is needed"),
        ("lookahead(n=auto)", "a value of type int is needed"),
        ("chimera(nodes=all)", r"nodes=all\): a value of type int or auto is needed"),
        ("chimera(nodes=auto,lookup=3)", "chimera takes either nodes=auto or lookup"),
        ("lookahead(prompt=1)", "a value of type bool is needed"),
        ("lookahead(n=2)", "lookahead needs n >= 3, not 2"),
        ("prompt_lookup(k=0)", "prompt_lookup needs k >= 1, not 0"),
    ],
)
def test_bad_methods_are_one_clear_line(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        resolve([text])
    assert "\n" not in str(caught.value)


# Labels


@pytest.mark.parametrize(
    "text",
    ["lookahead", "lookahead()", "lookahead(g=7,w=7,n=5)", "lookahead( n=05 , prompt=TRUE)"],
)
def test_the_label_does_not_depend_on_how_it_is_written(text: str) -> None:
    assert labels(text) == [REFERENCE, "lookahead(n=5,w=7,g=7,prompt=true)"]


def test_a_label_resolves_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Guest)
    found = labels("guest(size=3,rate=1)", "lookahead(n=4,prompt=false)", STOCK, "prompt_lookup")
    assert found[1] == "guest(size=3,rate=1.0,wide=false,kind=plain)"
    assert labels(*found) == found


def test_parameters_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Guest)
    _, guest = resolve(["guest(size=3,rate=1,wide=true,kind=7)"])
    assert guest.settings == GuestSettings(3, 1.0, True, "7")
    assert guest.params == {"size": 3, "rate": 1.0, "wide": True, "kind": "7"}
    assert type(guest.params["rate"]) is float
    _, lookahead = resolve(["lookahead(w=9)"])
    assert lookahead.settings == LookaheadSettings(w=9)
    assert (lookahead.decoder, lookahead.lossless) == (Lookahead, True)


# Which methods run


def test_the_reference_is_there_once_and_first_unless_placed() -> None:
    assert labels() == [REFERENCE]
    assert labels("prompt_lookup", STOCK) == [REFERENCE, "prompt_lookup(n=3,k=10)", STOCK]
    assert labels(STOCK, REFERENCE) == [STOCK, REFERENCE]
    assert labels("autoregressive()") == [REFERENCE]


def test_two_settings_of_one_method_are_two_rows_and_one_setting_twice_is_refused() -> None:
    assert labels("lookahead", "lookahead(n=4)")[1:] == [
        "lookahead(n=5,w=7,g=7,prompt=true)",
        "lookahead(n=4,w=7,g=7,prompt=true)",
    ]
    with pytest.raises(UsageError, match=r"names lookahead\(n=5,w=7,g=7,prompt=true\) twice"):
        resolve(["lookahead", "lookahead(n=5)"])
    with pytest.raises(UsageError, match="names autoregressive twice"):
        resolve([REFERENCE, "autoregressive()"])


def test_checkpoints_and_tree_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Guest)
    found = resolve(["guest(size=1)", "lookahead"], ["guest=some/weights=1"], "paper")
    by_name = {method.name: method.settings for method in found}
    assert by_name["guest"].checkpoint == "some/weights=1"
    assert by_name["lookahead"].checkpoint is None
    assert by_name["guest"].tree == by_name["lookahead"].tree == "paper"
    assert "weights" not in found[1].label


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("weights.pt", "cannot read --checkpoint 'weights.pt'; write METHOD=PATH_OR_HUB_ID"),
        ("lookahead=", "cannot read --checkpoint 'lookahead='"),
        ("=weights", "unknown method ''"),
        ("lookahed=weights", "--checkpoint: unknown method 'lookahed'; did you mean 'lookahead'?"),
        ("prompt_lookup=weights", "names 'prompt_lookup', which is not among --methods"),
    ],
)
def test_bad_checkpoints(entry: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        resolve(["lookahead"], [entry])


# Entry points


def test_installed_decoders_are_found_and_keep_their_names() -> None:
    found = discover()
    assert {REFERENCE, "lookahead", "prompt_lookup"} <= set(found)
    assert list(found) == sorted(found)
    for name, point in found.items():
        kind = point.load()
        assert issubclass(kind, Decoder)
        assert kind.name == name


def test_no_decoders_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch)
    with pytest.raises(UsageError, match="no decoders are installed; run `pip install"):
        discover()


def test_a_name_taken_by_two_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = "baselines.autoregressive:Autoregressive"
    points(monkeypatch, (REFERENCE, real), (REFERENCE, real))
    assert list(discover()) == [REFERENCE]
    points(monkeypatch, (REFERENCE, real), (REFERENCE, "other:Autoregressive"))
    with pytest.raises(UsageError, match=f"method 'autoregressive' is both {real} and other:"):
        discover()


@pytest.mark.parametrize(
    "value",
    [
        "no_such_module:Decoder",
        pytest.param("bench.decoding.decoder:NoSuchName"),
    ],
)
def test_a_decoder_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    points(monkeypatch, (REFERENCE, "baselines.autoregressive:Autoregressive"), ("guest", value))
    assert labels() == [REFERENCE]  # it is not imported
    with pytest.raises(UsageError, match="method 'guest' cannot be imported: "):
        resolve(["guest"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("guest", "guest needs a value for size"),
        ("guest(rate=0.5)", "guest needs a value for size"),
        ("guest(size=0)", "guest needs size >= 1, not 0"),
        ("guest(size=1,rate=fast)", "a value of type float is needed"),
    ],
)
def test_a_guest_is_refused_by_its_own_rules(
    monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    install(monkeypatch, Guest)
    with pytest.raises(UsageError, match=complaint):
        resolve([text])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_parameter_is_a_finite_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install(monkeypatch, Guest)
    with pytest.raises(UsageError, match="rate"):
        labels(f"guest(size=1,rate={value})")


def test_another_packages_decoder_runs_in_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    install(monkeypatch, Guest, Homeless)
    wanted = ["guest(size=1)", "guest(size=2,wide=true)", "homeless"]
    assert run("--methods", *wanted, "--out", "run") == 0
    first, second = (
        [r for r in harness.of("run", "guest") if r["params"]["size"] == size] for size in (1, 2)
    )
    assert len(first) == len(second) == harness.TURNS
    assert not {r["key"] for r in first} & {r["key"] for r in second}
    by_turn = {r["prompt_sha256"]: r["output_ids"] for r in harness.of("run", REFERENCE)}
    assert all(r["output_ids"] == by_turn[r["prompt_sha256"]] for r in (*first, *second))
    (skipped,) = harness.of("run", "homeless")
    assert skipped["status"] == "skipped"
    assert skipped["error"] == "no weights for synthetic:predictable"
    assert validation.check("run") == []


# The list


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    install(monkeypatch, Homeless)
    assert main(["--list", "--models", "synthetic:predictable"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    return shown.out


def test_the_list_says_what_can_run_here_and_why_not(listing: str) -> None:
    lines = {line.split()[0]: line for line in listing.splitlines() if line.startswith("  ")}
    for name in ("synthetic:predictable", *harness.LABELS, "mini", "tuning"):
        assert lines[name].endswith("ready"), name
    for name in ("smollm2-135m", "vicuna-7b-v1.3", "llama-2-13b-chat", "mt_bench", "sum"):
        assert name in lines
    assert lines["homeless"].endswith("no weights for synthetic:predictable")


def test_the_list_says_which_engines_need_a_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--models", "synthetic:predictable", "--device", "cpu"]) == 0
    lines = {line.split()[0]: line for line in capfd.readouterr().out.splitlines() if line}
    assert lines["graph"].endswith("needs a GPU")
    for name in ("eager", "compile", "exact"):
        assert lines[name].endswith("ready"), name


def test_the_list_refuses_what_a_run_would(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--models", "synthetic:none"]) == 2
    assert capfd.readouterr().err.startswith("error: unknown model 'synthetic:none'")


def test_the_list_survives_decoders_it_cannot_make(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reference = (REFERENCE, "baselines.autoregressive:Autoregressive")
    points(monkeypatch, reference, ("broken", "no_such_module:X"), ("guest", f"{__name__}:Guest"))
    assert main(["--list", "--models", "synthetic:predictable"]) == 0
    lines = {line.split()[0]: line for line in capfd.readouterr().out.splitlines() if line}
    assert "cannot be imported" in lines["broken"]
    assert "needs a value for size" in lines["guest"]
    assert lines[REFERENCE].endswith("ready")
