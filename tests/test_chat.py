"""Chat templates on a tokenizer of single bytes, whose ids decode to exactly what was rendered."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bench.errors import UsageError
from bench.questions.chat import TEMPLATES, Message, render

ASKED: list[Message] = [{"role": "user", "content": "Hi?"}]
ASKED_TWICE: list[Message] = [
    *ASKED,
    {"role": "assistant", "content": " Hello. "},
    {"role": "user", "content": "Why?"},
]
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Adds a BOS itself, as LLaMA's does, when special tokens are requested."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def text_of(messages: list[Message], template: str) -> str:
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>")
    ids = render(tokenizer, messages, template)
    # Special tokens are single ids, not their letters.
    assert ids[0] == tokenizer.bos_token_id
    text: str = tokenizer.decode(ids)
    assert ids.count(tokenizer.bos_token_id) == text.count("<s>")
    assert ids.count(tokenizer.eos_token_id) == text.count("</s>")
    return text


def test_vicuna_first_turn() -> None:
    assert text_of(ASKED, "vicuna") == f"<s>{VICUNA_SYSTEM} USER: Hi? ASSISTANT:"


def test_vicuna_closes_an_answer_with_eos() -> None:
    expected = f"<s>{VICUNA_SYSTEM} USER: Hi? ASSISTANT: Hello.</s>USER: Why? ASSISTANT:"
    assert text_of(ASKED_TWICE, "vicuna") == expected


def test_vicuna_takes_another_system_message() -> None:
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, *ASKED]
    assert text_of(messages, "vicuna") == "<s>Be brief. USER: Hi? ASSISTANT:"


def test_llama_2_first_turn_has_no_system_prompt() -> None:
    assert text_of(ASKED, "llama-2-chat") == "<s>[INST] Hi? [/INST]"


def test_llama_2_wraps_each_exchange() -> None:
    expected = "<s>[INST] Hi? [/INST] Hello. </s><s>[INST] Why? [/INST]"
    assert text_of(ASKED_TWICE, "llama-2-chat") == expected


def test_llama_2_puts_a_system_message_into_the_first_exchange_only() -> None:
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, *ASKED_TWICE]
    assert text_of(messages, "llama-2-chat") == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi? [/INST] Hello. </s><s>[INST] Why? [/INST]"
    )


def test_own_template_gets_the_generation_prompt() -> None:
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    ids = render(tokenizer, ASKED_TWICE, None)
    assert all(type(token) is int for token in ids)
    assert tokenizer.decode(ids) == "[user]Hi?[assistant] Hello. [user]Why?[assistant]"


def test_no_template_at_all_names_the_registered_ones() -> None:
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>")
    with pytest.raises(UsageError, match=r"no chat template; choose one by --chat-template"):
        render(tokenizer, ASKED, None)


def test_unknown_template() -> None:
    with pytest.raises(UsageError, match="unknown chat template 'alpaca'"):
        render(byte_tokenizer(), ASKED, "alpaca")


@pytest.mark.parametrize("template", TEMPLATES)
def test_registered_template_needs_bos_and_eos(template: str) -> None:
    with pytest.raises(UsageError, match="BOS and an EOS"):
        render(byte_tokenizer(eos_token="</s>"), ASKED, template)


@pytest.mark.parametrize("messages", [[], ASKED_TWICE[:2]])
def test_conversation_must_end_with_the_user(messages: list[Message]) -> None:
    with pytest.raises(ValueError, match="user"):
        render(byte_tokenizer(bos_token="<s>", eos_token="</s>"), messages, "vicuna")
