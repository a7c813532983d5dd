"""What is odd about a base's chat template, said before anything is trained with it."""

from silotune.data.read.rows import Turn
from silotune.data.tokenize.chat_template import ADDED_PROMPT, ChatTemplate, fill, first_tokens, template_of
from silotune.data.tokenize.pieces import token_ids
from silotune.data.tokenize.rendering import Kind, outline_of, turn_end
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import DataError
from silotune.settings import SystemTurns

ASKED = [Turn("user", "Where is it?")]


def oddities(tokenizer: Tokenizer, system: SystemTurns = "template") -> list[str]:
    """What a user should know of a chat template, a sentence each; nothing for most.

    Args:
        tokenizer: of the base, as `model.base.load_tokenizer` gives it.
        system: what becomes of system turns.
    """
    template = template_of(tokenizer, system)
    try:
        prompt = fill(template, ASKED, prompt=True)
        outline = outline_of(template, (Kind("user"), Kind("assistant")))
    except DataError as error:
        return [f"The chat template writes no question with its answer: {error}"]
    found = [*_prompts(template, prompt), *_beginning(template, prompt), *_ends(template)]
    if outline.unsaid:
        written = prompt[len(prompt) - outline.unsaid :]
        found.append(
            f"Prompts end with {written!r}, which the template does not write before an answer that is there: what "
            "is trained begins otherwise than what is generated."
        )
    return found


def _prompts(template: ChatTemplate, prompt: str) -> list[str]:
    """Where `add_generation_prompt` does nothing, or is always on."""
    if ADDED_PROMPT in template.text:
        header = prompt.removeprefix(fill(template, ASKED))
        return [
            f"add_generation_prompt does nothing in the model's chat template. {header!r} is added to it, for that is "
            "how the template begins an answer; exports carry the changed template."
        ]
    if fill(template, ASKED) == prompt:
        return [
            "add_generation_prompt changes nothing in the chat template: an assistant's turn is always open after a "
            "question."
        ]
    return []


def _beginning(template: ChatTemplate, prompt: str) -> list[str]:
    """Where the beginning-of-sequence token comes twice, or not at all."""
    tokenizer = template.tokenizer
    (ids,) = token_ids(tokenizer, [prompt], literal=False)
    begins = first_tokens(tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        return [f"The chat template writes {tokenizer.bos_token} twice at the beginning of a conversation."]
    if begins and list(ids[:1]) != begins:
        return [
            f"The chat template does not begin with {tokenizer.bos_token}, as the tokenizer does with plain texts; "
            "conversations are written as the template writes them."
        ]
    return []


def _ends(template: ChatTemplate) -> list[str]:
    """Where no end of turn is learned, or padding is one."""
    tokenizer, end = template.tokenizer, turn_end(template)
    if not end.text:
        return [
            f"The chat template writes no end of turn. Answers learn to end with {tokenizer.eos_token}, which is added "
            "after them."
        ]
    if end.stop:
        return [f"The chat template ends a turn with the text {end.stop!r} and no token: generation stops at the text."]
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id in end.tokens:
        return [
            f"{tokenizer.pad_token} is the end of turn and the padding as well. Padding carries no loss here; but a "
            "trainer that masks padding by its token would never learn to stop."
        ]
    return []
