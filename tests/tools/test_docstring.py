"""Facts about docstrings as people write them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.tools.docstring import read_docstring

NAMES = ["city", "days"]
TEXTS = {"city": "where to look, in any spelling", "days": "how far ahead"}
CASES = {}


def c(name, text, desc="Get the weather.", texts=TEXTS, names=NAMES):
    CASES[name] = text, desc, texts, names


c(
    "google",
    """Get the weather.

    Args:
        city: where to look, in any spelling
        days: how far ahead

    Returns:
        A sentence.
    """,
)
c(
    "noblank",
    """Get the weather.
    Args:
        city: where to look,
            in any spelling
        days: how far ahead
    Returns:
        A sentence.
    Raises:
        ValueError: x
    """,
)
for h in [
    "Arguments:",
    "Parameters:",
    "Params:",
    "args:",
    "ARGS:",
    "Args",
    "Arg:",
    "parameters",
    "Args :",
    "**Args:**",
    "## Parameters",
    "Parameters",
    "Keyword Args:",
    "Other Parameters:",
    "Input parameters:",
    "Args (all):",
    "Inputs:",
    "Input:",
    "__Args__:",
    "*Args*:",
    "arguments",
    "Params",
]:
    c(
        "head " + h,
        f"""Get the weather.
    {h}
        city: where to look,
        in any spelling
        days: how far ahead
    """,
    )
    c(
        "head same level " + h,
        f"""Get the weather.

    {h}
    city: where to look, in any spelling
    days: how far ahead

    Returns:
    A sentence.
    """,
    )
c(
    "types",
    """Get the weather.

    Args:
        city (str): where to look,
            in any spelling
        days (Optional[dict[str, (int)]], optional): how far ahead
    """,
)
c(
    "types nospace",
    """Get the weather.

    Args:
        city(str): where to look, in any spelling
        days [int]: how far ahead
    """,
)
c(
    "missing colon",
    """Get the weather.

    Args:
        city where to look, in any spelling
        days (int) how far ahead
    """,
)
c(
    "dash",
    """Get the weather.

    Args:
        city - where to look, in any spelling
        days (int) -- how far ahead
    """,
)
c(
    "bullets",
    """Get the weather.

    Args:
        - city: where to look, in any spelling
        - `days` (int): how far ahead
    """,
)
c(
    "bullets2",
    """Get the weather.

    Args:
        * **city**: where to look, in any spelling
        * *days*: how far ahead
    """,
)
c(
    "bold",
    """Get the weather.

    Args:
        **city** (str): where to look, in any spelling
        "days": how far ahead
    """,
)
c(
    "next line",
    """Get the weather.

    Args:
        city:
            where to look,
            in any spelling
        days (int):
            how far ahead
    """,
)
c(
    "blank between",
    """Get the weather.

    Args:

        city: where to look, in any spelling

        days: how far ahead

    """,
)
c(
    "wrong indentation",
    """Get the weather.

    Args:
        city: where to look, in any spelling
          days: how far ahead
    """,
)
c(
    "wrong indentation 2",
    """Get the weather.

    Args:
            city: where to look, in any spelling
        days: how far ahead
    Returns: x
    """,
)
c(
    "wrong indentation 3",
    """Get the weather.

    Args:
        city: where to look, in any spelling
    days: how far ahead
    """,
)
c(
    "wrong indentation 4",
    """Get the weather.

    Args:
        city: where to look,
    in any spelling
        days: how far ahead
    """,
)
c(
    "tabs",
    "Get the weather.\n\n\tArgs:\n\t\tcity: where to look,\n\t\t\tin any spelling\n\t\tdays: how far ahead\n\n\tReturns:\n\t\tx\n\t",
)
c(
    "tabs mixed",
    "Get the weather.\n\n    Args:\n\tcity: where to look,\n\t\tin any spelling\n        days: how far ahead\n\n    Returns:\n\tx\n\t",
)
c(
    "inline args",
    """Get the weather.

    Args: city: where to look, in any spelling
          days: how far ahead
    """,
)
c(
    "indented head",
    """Get the weather.

        Args:
            city: where to look, in any spelling
            days: how far ahead

    """,
)
c(
    "heads at entry level",
    """Get the weather.

    Args:
        city: where to look, in any spelling
        days: how far ahead
        Returns:
            x
        Example:
            >>> f()
    """,
)
c(
    "text after",
    """Get the weather.

    Args:
        city: where to look, in any spelling
        days: how far ahead

    It knows cities only: no villages.

    Returns:
        x

    Note:
        y

    The end.
    """,
    "Get the weather.\n\nIt knows cities only: no villages.\n\nThe end.",
)
c(
    "only args",
    """
    Args:
        city: where to look, in any spelling
        days: how far ahead
    """,
    "",
)
c(
    "paragraphs",
    """Get the weather.

    It is: slow. Example: no.
    Note that it is.

        code: x

    Two.

    Returns: A sentence, or
        nothing.
    """,
    "Get the weather.\n\nIt is: slow. Example: no.\nNote that it is.\n\n    code: x\n\nTwo.",
    {},
)
c(
    "fence",
    """Get the weather.

    ```
    Args:
        city: no
    :param days: no
    ```

    Args:
        city: where to look, in any spelling
        days: how far ahead
    """,
    "Get the weather.\n\n```\nArgs:\n    city: no\n:param days: no\n```",
)
c(
    "literal",
    """Get the weather. So::

        Args:
            city: no

    Args:
        city: where to look, in any spelling
        days: how far ahead
    """,
    "Get the weather. So::\n\n    Args:\n        city: no",
)
for u in ["----------", "---", "==========", "-------------"]:
    for h in ["Parameters", "parameters", "Parameters:", "Args", "Arguments"]:
        c(
            "numpy" + h + u,
            f"""Get the weather.

    {h}
    {u}
    city : str
        where to look,
        in any spelling
    days : int, optional
        how far ahead

    Returns
    -------
    str
        A sentence.

    Examples
    --------
    Do this.

    >>> f()

    And that.
    """,
        )
c(
    "numpy noblank",
    """Get the weather.
    Parameters
    ----------
    city: str
        where to look, in any spelling
    days
        how far ahead
    Returns
    -------
    str
    """,
)
c(
    "numpy unindented",
    """Get the weather.

    Parameters
    ----------
    city : str
    where to look, in any spelling
    days : int
    how far ahead
    """,
)
c(
    "numpy googlish",
    """Get the weather.

    Parameters
    ----------
    city : where to look, in any spelling
    days: how far ahead
    """,
)
c(
    "numpy googlish indented",
    """Get the weather.

    Parameters
    ----------
        city (str): where to look, in any spelling
        days (int): how far ahead

    It is slow today.
    """,
    "Get the weather.\n\nIt is slow today.",
)
c(
    "numpy no text",
    """Get the weather.

    Parameters
    ----------
    city : str
    days : int, default 3

    See Also
    --------
    other : x
    """,
    texts={},
)
c(
    "numpy joint",
    """Get the weather.

    Parameters
    ----------
    city, days : str
        both

    More is to say here.
    """,
    "Get the weather.\n\nMore is to say here.",
    {"city": "both", "days": "both"},
)
c(
    "numpy choices",
    """Get the weather.

    Parameters
    ----------
    city : {'C', 'F'}, optional
        where to look, in any spelling
    days : list of int or None
        how far ahead

    Raises
    ------
    ValueError
        If no.

    It knows no villages.
    """,
    "Get the weather.\n\nIt knows no villages.",
)
c(
    "google head numpy entries",
    """Get the weather.

    Args:
        city : str
            where to look, in any spelling
        days : int, optional
            how far ahead
    """,
)
c(
    "google space colon",
    """Get the weather.

    Args:
        city : where to look, in any spelling
        days : how far ahead
    """,
)
c(
    "sphinx",
    """Get the weather.

    :param city: where to look,
        in any spelling
    :type city: str
    :param int days: how far ahead
    :returns: A sentence,
        or so
    :rtype: str
    :raises ValueError: no
    """,
)
c(
    "sphinx noblank",
    """Get the weather.
    :param str city: where to look,
    in any spelling
    :param days : how far ahead
    :return: A sentence

    It ends.""",
    "Get the weather.\n\nIt ends.",
)
c(
    "sphinx missing colon",
    """Get the weather.

    :param city where to look, in any spelling
    :param int days how far ahead
    """,
)
c(
    "sphinx next line",
    """Get the weather.

    :param city:
        where to look, in any spelling
    :param dict[str, int] days:

        how far ahead
    """,
)
c(
    "sphinx kw",
    """Get the weather.

    :keyword city: where to look, in any spelling
    :arg days:how far ahead
    """,
)
c(
    "epytext",
    """Get the weather.

    @param city: where to look,
        in any spelling
    @type city: str
    @param days: how far ahead
    @return: A sentence.
    @raise ValueError: no
    """,
)
c(
    "javadoc",
    """Get the weather.

    @param city where to look, in any spelling
    @param {int} days - how far ahead
    @returns A sentence.
    """,
)
c(
    "mixed",
    """Get the weather.

    Args:
        city: where to look, in any spelling
    :param days: how far ahead
    :return: x
    """,
)
c(
    "mixed2",
    """Get the weather.

    Parameters
    ----------
    city : str
        where to look, in any spelling

    Args:
        days: how far ahead

    Returns
    -------
    x
    """,
)
c(
    "stars",
    """Get the weather.

    Args:
        *args: more
        **kwargs (Any): options
    """,
    texts={"args": "more", "kwargs": "options"},
    names=["args", "kwargs"],
)
c(
    "stars2",
    """Get the weather.

    Parameters
    ----------
    \\*args
        more
    **kwargs : dict
        options
    """,
    texts={"args": "more", "kwargs": "options"},
    names=["args", "kwargs"],
)
c(
    "stars3",
    """Get the weather.

    :param \\*args: more
    :param **kwargs: options
    """,
    texts={"args": "more", "kwargs": "options"},
    names=["args", "kwargs"],
)
c(
    "nested",
    """Get the weather.

    Args:
        city: where to look,
            days: not this
            Example: Oslo
        days: how far ahead
    """,
    texts={"city": "where to look, days: not this Example: Oslo", "days": "how far ahead"},
)
c(
    "unknown",
    """Get the weather.

    Args:
        town: none
            really
        city: where to look, in any spelling
        days: how far ahead
        retries: of old
    """,
)
c(
    "colons",
    """Get the weather.

    Args:
        city: where: to look, https://a.b/c:d
        days (int): e.g.: 3
    """,
    texts={"city": "where: to look, https://a.b/c:d", "days": "e.g.: 3"},
)
c("returns first", """Returns: the time.""", "Returns: the time.", {})
c(
    "returns prose",
    """Returns the weather of a city.

    Example: no heading.
    """,
    "Returns the weather of a city.\n\nExample: no heading.",
    {},
)
c(
    "names like heads",
    """Find.

    Args:
        input: the text
        example: an example
        returns: what it returns
        args: more
    Returns:
        x
    """,
    "Find.",
    {"input": "the text", "example": "an example", "returns": "what it returns", "args": "more"},
    ["input", "example", "returns", "args"],
)
c(
    "rst note",
    """Get the weather.

    .. note:: slow
       very

    .. code-block:: python

        f()

    :param city: where to look, in any spelling
    :param days: how far ahead
    """,
    "Get the weather.\n\n.. code-block:: python\n\n    f()",
)
c(
    "args none",
    """Get the weather.

    Args: None

    Returns: str: x
    """,
    texts={},
)
c(
    "param fence",
    """Get the weather.

    Args:
        city: where to look:
            ```
            Returns: x
            days: no
            ```
        days: how far ahead
    """,
    texts={"city": "where to look: ``` Returns: x days: no ```", "days": "how far ahead"},
)
c(
    "multi para",
    """Get the weather.

    Args:
        city: where to look,

            in any spelling
        days: how far ahead
    """,
)
c(
    "usage",
    """Get the weather.

    Usage:
        - call it once
        - never twice

    Limits: three a day.
    """,
    "Get the weather.\n\nUsage:\n    - call it once\n    - never twice\n\nLimits: three a day.",
    {},
)


c(
    "text before the entries",
    """Get the weather.

    Parameters
    ----------
    Either of them is given, or both are.

    city : str
        where to look, in any spelling
    days : int
        how far ahead
    """,
    "Get the weather.\n\nEither of them is given, or both are.",
)
c(
    "names in a text",
    """Get the weather.

    Args:
        city: one of

            *days*, *city*
        days: how far ahead
    """,
    texts={"city": "one of *days*, *city*", "days": "how far ahead"},
)
c(
    "underscores",
    """Get the weather.

    Args:
        _city: where
        days_: how far
    """,
    texts={"_city": "where", "days_": "how far"},
    names=["_city", "days_"],
)
c(
    "markdown_bold",
    """Get the weather.

    **Arguments**

    - **city** (*str*): where to look, in any spelling
    - **days** (*int*, optional): how far ahead

    **Returns**

    - a list of sentences about it
    """,
)
c(
    "markdown_headings",
    """Get the weather.

    ## Args
    * `city` (str): where to look, in any spelling
    * `days`: how far ahead

    ## Returns
    A list of sentences.
    """,
)
c(
    "example_in_a_fence",
    """Get the weather.

    Args:
        city (`str`):
            where to look,
            in any spelling
        days (`int`, *optional*, defaults to 5):
            how far ahead

    Example:

    ```python
    >>> weather("Oslo")
    ```
    """,
)
c(
    "numpy_args_and_kwargs",
    """Get the weather.

    Parameters
    ----------
    city : str
        where to look, in any spelling
    days : int
        how far ahead
    *args
        the rest
    **kwargs : dict, optional
        more
    """,
)
c(
    "consolidated_fields",
    """Get the weather.

    :Parameters:
      - `city` (str): where to look, in any spelling
      - `days`: how far ahead
    :Returns:
      A sentence.
    """,
)
c(
    "full_width_colon",
    """Get the weather.

    Args：
        city： where to look, in any spelling
        days： how far ahead
    Returns：
        A sentence.
    """,
)
c(
    "defaults",
    """Get the weather.

    Args:
        city="Oslo": where to look, in any spelling
        days=3 (int): how far ahead
    """,
)
c(
    "equals",
    """Get the weather.

    Args:
        city = where to look, in any spelling
        days => how far ahead
    """,
)
c(
    "a_heading_that_says_more",
    """Get the weather.

    Args: both are for the forecast.
        city: where to look, in any spelling
        days: how far ahead
    """,
    "Get the weather.\n\nboth are for the forecast.",
)
c(
    "a_section_of_another_name_below",
    """Get the weather.

    Args:
        city: where to look, in any spelling
        days: how far ahead
    When to use:
        It is for tomorrow.
    """,
    "Get the weather.\n\nWhen to use:\n    It is for tomorrow.",
)
c(
    "lines_of_no_parameter",
    """Get the weather.

    Args:
        Everything is in UTC.
        city: where to look, in any spelling
        days: how far ahead
    """,
    "Get the weather.\n\nEverything is in UTC.",
)
c("no_parameters", "Now.\n\nArgs:\n    None\n\nReturns:\n    The time.\n", "Now.", {}, [])
c(
    "jsdoc",
    """Get the weather.

    @param {string} city - where to look, in any spelling
    @param {number} [days] - how far ahead
    @returns {string} a sentence
    """,
)


@pytest.mark.parametrize("name", CASES)
def test_a_docstring_gives_the_description_and_each_text(name):
    """Whatever the style and its slips, each parameter has its text, and the description has no section in it."""
    text, description, texts, names = CASES[name]
    said = read_docstring(text, names)
    assert (said.description, said.texts) == (description, texts)


def test_what_is_no_parameter_is_kept_apart():
    """An entry for a parameter that the function does not have is told, and takes nothing from its neighbours."""
    said = read_docstring("Get.\n\nArgs:\n    town: of old\n    city: where\n", ["city"])
    assert said.texts == {"city": "where"}
    assert said.unknown == {"town": "of old"}


@pytest.mark.parametrize("text", [None, "", "  \n "])
def test_no_docstring_says_nothing(text):
    """Without a docstring there is no description."""
    assert read_docstring(text, ["city"]).description == ""


WORDS = st.sampled_from(
    ["Args:", "city", "city:", "days (int):", ":param", "city", "Returns:", "Returns", "-------", "```", "x::", "Note:",
     "\n", "\n", "\n\n", "\n    ", "\n        ", "\t", "(", "[", "- ", "*", "@return", "where", "to", "look."]
)  # fmt: skip


@given(st.lists(WORDS, max_size=40).map(" ".join))
def test_any_text_can_be_read(text):
    """No text makes the reader fail, and it makes up no words."""
    said = read_docstring(text, ["city", "days"])
    assert said.texts.keys() <= {"city", "days"}
    for part in [said.description, *said.texts.values()]:
        assert set(re.findall(r"\w+", part)) <= set(re.findall(r"\w+", text))


@given(
    st.lists(
        st.sampled_from(["It is: slow.", "Two words", "A list:", "- of it", "  - deeper", "", "x = 1"]),
        max_size=9,
    )
)
def test_text_without_sections_is_the_description(lines):
    """What belongs to no section is all there, in order."""
    text = "Get.\n" + "\n".join(lines)
    said = read_docstring(text, ["city"])
    assert said.description.split() == text.split()
    assert said.texts == {}
