"""A typed prompt in the form of a study's own prompts."""

from __future__ import annotations

from collections.abc import Sequence

from delta_transcoders.tasks.task import Example, Message


class PromptForm:
    """What the prompts of a study have in common.

    Attributes:
        is_chat: whether they are messages for a chat template.
        system: the first message of all chats, where it is one and the same and not the user's.
        breaks: whether all end in a line break.
        first: what a user would have typed of the first one.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        first = examples[0].prompt
        self.is_chat = not isinstance(first, str)
        self.first = first[-1].content if self.is_chat else first
        self.system: tuple[Message, ...] = ()
        if self.is_chat:
            firsts = {example.prompt[0] for example in examples if len(example.prompt) > 1}
            if len(firsts) == 1 and next(iter(firsts)).role == "system":
                self.system = tuple(firsts)
        self.breaks = all(str(example.prompt).endswith("\n") for example in examples)

    @property
    def words(self) -> str:
        """What becomes of a prompt that is typed; empty where nothing does."""
        if self.is_chat:
            system = " after the study's system message" if self.system else ""
            return f"It is sent as a user's message{system}, in the tokenizer's chat template."
        if self.breaks:
            return "A line break is put at its end, as the study's own prompts have."
        return ""

    def example(self, prompt: str) -> Example:
        if self.is_chat:
            return Example((*self.system, Message("user", prompt)), None, "")
        ends = "" if not self.breaks or prompt.endswith("\n") else "\n"
        return Example(prompt + ends, None, "")
