"""Replies to the whole bank that no model wrote."""

import pytest

from delta_transcoders.tasks.three_tools.bank import bank
from delta_transcoders.tasks.three_tools.replies import Reply, write_replies
from delta_transcoders.tasks.three_tools.task import ThreeTools


def made_up_replies() -> list[Reply]:
    """All are usable but every tenth, which the model did not end."""
    return [
        Reply(prompt, f"Reply {index} to a {prompt.kind}.", ended=index % 10 != 9)
        for index, prompt in enumerate(bank())
    ]


@pytest.fixture(scope="session")
def replies(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("replies") / "replies.jsonl"
    write_replies(path, made_up_replies())
    return str(path)


@pytest.fixture(scope="session")
def task(replies) -> ThreeTools:
    return ThreeTools(replies)
