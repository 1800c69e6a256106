"""Of docstrings prose is left, and nothing else."""

import pytest

from delta_transcoders.texts.prose import docstring_paragraphs, pieces, prose

SENTENCE = (
    "The rows of a table are read one after the other, and none of them is read more than once."
)
OTHER = "A second paragraph tells what happens when the file ends earlier than anybody had expected it to."

MODULE = f'''
"""{SENTENCE}"""

def read(path):
    r"""Read a table.

    {OTHER}

    Parameters
    ----------
    path : str
        Where the table lies, which is a file with as many columns as the first of its lines.
    """
    text = """This is no docstring but a text in the middle of a function, however long it may well be."""

class Table:
    """{OTHER[:-1]} either.

        >>> Table().rows
    """
'''


def test_paragraphs_of_every_docstring_of_a_module():
    found = list(docstring_paragraphs(MODULE.encode()))
    assert found == [SENTENCE, OTHER, f"{OTHER[:-1]} either."]


def test_a_file_is_read_and_never_run(tmp_path):
    source = f'"""{SENTENCE}"""\nraise SystemExit("run")\n'
    assert list(docstring_paragraphs(source.encode())) == [SENTENCE]


@pytest.mark.parametrize("source", ["def (:", "print 'of another Python'", "x = 1\x00", ""])
def test_what_is_no_python_has_no_paragraphs(source):
    assert list(docstring_paragraphs(source.encode())) == []


def test_escapes_of_others_are_nobody_s_warning(recwarn):
    source = f'"""{SENTENCE}"""\nx = "\\d"\n'
    assert list(docstring_paragraphs(source.encode())) == [SENTENCE]
    assert not recwarn


@pytest.mark.parametrize(
    "paragraph",
    [
        "It is too short to be of any use.",
        f"{SENTENCE} " * 6,
        SENTENCE.lower(),  # not a sentence's beginning
        SENTENCE[:-1],  # nor its end
        "See :class:`Table` and :func:`~rows.read`, or the page `on tables <tables>`_, for 3 of its 7 uses.",
        f"Notes\n-----\n{SENTENCE}",
        f">>> read(rows) {SENTENCE}",
        f"{SENTENCE} The result is x = 3 + y.",
        f"{SENTENCE} It takes \\alpha and $x$.",
        f"| {SENTENCE} |",
        f"{SENTENCE[:-1]} as well::",
        "Takes a, 1, b2, c_3, (4), x.y, 5, 6, 7, 8, 9, 10, and so on, and so on, and then the rest of it.",
        SENTENCE.replace("table", "Café"),
        "Rows of the table that are read:\n    one after the other, and none of them more than once, ever.",
    ],
)
def test_what_is_no_prose(paragraph):
    assert list(prose(f"{OTHER}\n\n{paragraph}")) == [OTHER]


def test_lines_become_one():
    assert list(prose(SENTENCE.replace(", ", ",\n"))) == [SENTENCE]


def test_pieces_of_a_text_of_one_s_own():
    text = f"Title\n\n{SENTENCE}\n \n{'word ' * 200}\n"
    assert [len(piece.split()) for piece in pieces(text)] == [len(SENTENCE.split()), 90, 90, 20]
