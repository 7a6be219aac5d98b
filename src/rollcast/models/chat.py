"""Messages to token ids through a Jinja chat template, so that text from outside stays text.

A tokenizer turns every occurrence of an added token's string (`<|im_end|>`, `<tool_call>` …) into that token, whoever
wrote it. Here only the template may write them. Before rendering, a *guard*, a private-use character that stands in none
of the texts, is put into every occurrence in text from outside; the rendered text is then cut at the added tokens, and
what lies between is encoded, without its guards, by a tokenizer that has no added tokens.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec
from tokenizers import AddedToken, Tokenizer

from rollcast.errors import InputError, MessagesError, PromptTooLongError
from rollcast.records import Message

__all__ = ["TemplateRenderer"]

_PRIVATE_USE = range(0xE000, 0xF900)

_SURROGATE = re.compile("[\ud800-\udfff]")

# Templates compare the values of these with words of their own: they are no prose.
_COMPARED_KEYS = frozenset({"role", "type"})

# The keys inside of these are the caller's words, not the format's.
_CALLERS_NAMES = {"arguments": "all", "properties": "here", "$defs": "here"}


class TemplateRenderer:
    """A `ChatRenderer` over any Hugging Face chat template and fast tokenizer.

    The ids are those of `apply_chat_template` as long as no text from outside contains the string of an added token.
    From outside is everything in the messages and tools: contents of every role, names, descriptions, arguments. An
    assistant message of a prompt (a demonstration) is no exception: give its calls in `tool_calls`, which the template
    renders; `arguments` that are a JSON object in a string are rendered as that object.

    Added tokens of whitespace alone, which some tokenizers have, say nothing and are left alone.

    Args:
        tokenizer: a fast tokenizer; it is only read.
        template: the Jinja source.
        special_tokens: what the template may name: `bos_token`, `eos_token` …
        eos_token_ids: which end the assistant's turn.
        template_kwargs: further variables of the template, `enable_thinking` …
        max_characters: of all contents together; more is refused before it is encoded. None: no limit.

    Raises:
        InputError: the template is not valid Jinja.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        special_tokens: Mapping[str, str],
        eos_token_ids: Collection[int],
        template_kwargs: Mapping[str, Any] | None = None,
        max_characters: int | None = None,
    ) -> None:
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_characters = max_characters
        self._variables = {**special_tokens, **(template_kwargs or {})}
        self._template = _compiled(template)
        self._codec = _Codec(tokenizer)
        self._guarded_tools: tuple[bytes, Any] = (b"", None)

    @classmethod
    def from_folder(
        cls, folder: str | Path, eos_token_ids: Collection[int], **template_kwargs: Any
    ) -> TemplateRenderer:
        """From `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` (or the config's `chat_template`).

        Raises:
            InputError: one of them is missing or broken.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        except Exception as error:  # the tokenizers package raises bare Exception for a broken file
            raise InputError(f"{path} cannot be read ({error}); expected a fast tokenizer") from error
        config = _read_object(folder / "tokenizer_config.json")
        template_path = folder / "chat_template.jinja"
        template = template_path.read_text("utf-8") if template_path.exists() else config.get("chat_template")
        if not isinstance(template, str):
            raise InputError(
                f"{folder} has no chat template; expected chat_template.jinja, or one in tokenizer_config.json"
            )
        special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        return cls(tokenizer, template, special, eos_token_ids, template_kwargs)

    def render(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
        """Ids of the whole prompt, shape (T,), up to where the assistant speaks.

        Raises:
            MessagesError: the template refuses the messages.
            PromptTooLongError: they are longer than `max_characters`.
        """
        guard = self._codec.free_characters((messages, tools), 1)
        return self._codec.encode(self._text(messages, tools, guard), guard)

    def extend(
        self, ids: list[int], messages: list[Message], new: int, tools: list[dict[str, Any]]
    ) -> list[int]:
        """Ids, shape (T,), that come after `ids` so that the last `new` of the messages stand and the assistant speaks.

        `ids` end with what the assistant sampled last; its message stands before the `new` ones. Nothing of `ids` is
        encoded again. Where they do not end the turn (the generation was cut), the template's end comes first.

        Raises:
            MessagesError: there is no assistant message at that place, or the template refuses the messages.
        """
        last = len(messages) - new - 1
        if not 0 <= last < len(messages) or messages[last]["role"] != "assistant":
            raise MessagesError(
                f"the message before the last {new} of {len(messages)} is not the assistant's; "
                "extend needs the conversation as it was sampled, then what is new"
            )
        # What the template writes after the last answer may depend on anything before, but not on the answer's text, of
        # which a mark takes the place.
        guard, mark = tuple(self._codec.free_characters((messages, tools), 2))
        marked: list[Message] = [*messages]
        marked[last] = {"role": "assistant", "content": mark}
        _, found, text = self._text(marked, tools, guard).rpartition(mark)
        if not found:
            raise MessagesError(
                "the chat template does not write the content of the last assistant message, so a turn cannot be "
                "appended to it; use a template that does"
            )
        suffix = self._codec.encode(text, guard)
        ended = bool(ids and suffix) and ids[-1] == suffix[0] and ids[-1] in self.eos_token_ids
        return suffix[1:] if ended else suffix

    def _text(self, messages: list[Message], tools: list[dict[str, Any]], guard: str) -> str:
        if self.max_characters is not None:
            given = sum(len(text) for message in messages if isinstance(text := message.get("content"), str))
            if given > self.max_characters:
                raise PromptTooLongError(
                    f"the messages have {given} characters; expected at most {self.max_characters}, which is more than "
                    "fits this model's context: shorten the conversation, or use a larger model"
                )
        guarded = [self._codec.guarded(self._readable(message), guard) for message in messages]
        try:
            return self._template.render(
                messages=guarded,
                tools=self._tools(tools, guard),
                documents=None,
                add_generation_prompt=True,
                **self._variables,
            )
        except jinja2.TemplateError as error:
            raise MessagesError(f"the chat template refuses the messages: {error}") from error
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            # What Python operations inside a template raise when a message lacks a field.
            raise MessagesError(
                f"the chat template failed on the messages ({type(error).__name__}: {error}); "
                "expected the fields that it reads"
            ) from error

    def _readable(self, message: Message) -> dict[str, Any]:
        """A copy as the template reads it: one that writes contents as text gets the text of content in parts."""
        content = message.get("content")
        if not isinstance(content, list | tuple) or self._reads_parts:
            return _with_objects(message)
        for part in content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise MessagesError(
                    f"the content of a {message['role']} message has a part of type {part.get('type')!r}; the chat "
                    "template of this model reads text alone"
                )
        return _with_objects({**message, "content": "".join(part["text"] for part in content)})

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template takes content in parts apart, instead of writing Python's text of the list."""
        parts = [{"type": "text", "text": "hello", "unread": "7f3a91"}]
        variables = {"messages": [{"role": "user", "content": parts}], "tools": None, "documents": None}
        try:
            text = self._template.render(**variables, add_generation_prompt=True, **self._variables)
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError):
            return False
        return "hello" in text and "7f3a91" not in text

    def _tools(self, tools: list[dict[str, Any]], guard: str) -> Any:
        """The guarded tools; mostly those of the last time."""
        key = _bytes((tools, guard))
        known, guarded = self._guarded_tools
        if not key or key != known:
            guarded = self._codec.guarded(tools, guard) or None
            self._guarded_tools = key, guarded
        return guarded


class _Codec:
    """Guards text from outside, and encodes guarded text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        self._ids = {token.content: index for index, token in added.items()}
        # As the tokenizers package does: first the tokens that are matched in the raw text, then the others.
        by_pass = [[t for t in added.values() if t.normalized is normalized] for normalized in (False, True)]
        self._splitters = [_splitter(tokens) for tokens in by_pass if tokens]
        self._encoded: dict[tuple[bool, str], list[int]] = {}
        words = [token.content for token in added.values() if not token.content.isspace()]
        self._occurrence = re.compile(f"(?=(?:{_any_of(words)}))(.)", re.DOTALL) if words else None
        # An added token may also come about where outside text meets the template's.
        self._heads = tuple({word[:end] for word in words for end in range(1, len(word))})
        self._tails = tuple({word[start:] for word in words for start in range(1, len(word))})
        self._inner = "\0".join(word[1:-1] for word in words)
        self._added_ids = frozenset(self._ids.values())
        self._first, self._later = _plain_tokenizers(tokenizer)

    def free_characters(self, value: Any, count: int) -> str:
        """Private-use characters that occur in none of the texts of a value, nor in an added token."""
        whole = _bytes(value)
        texts = [*_texts(value), *self._ids] if not whole else [whole.decode(), *self._ids]
        found = ""
        for code in _PRIVATE_USE:
            character = chr(code)
            if not any(character in text for text in texts):
                found += character
                if len(found) == count:
                    return found
        raise MessagesError(
            f"the messages use all {len(_PRIVATE_USE)} private-use characters U+E000 to U+F8FF; one has to be left free"
        )

    def guarded(self, value: Any, guard: str, names: str = "") -> Any:
        """A copy with guards in every text that could be taken for an added token or be a part of one.

        Keys are guarded where they are the caller's: `names` is "here" for this mapping's, "all" for those below too.
        """
        if isinstance(value, str):
            return self._guarded_text(value, guard)
        if isinstance(value, list | tuple):
            return [self.guarded(item, guard, names) for item in value]
        if not isinstance(value, Mapping):
            return value
        copied = {}
        for key, item in value.items():
            if not names and key in _COMPARED_KEYS and isinstance(item, str) and item.isidentifier():
                copied[key] = item
                continue
            below = {"": _CALLERS_NAMES.get(key, ""), "here": "", "all": "all"}[names]
            name = self._guarded_text(key, guard) if names and isinstance(key, str) else key
            copied[name] = self.guarded(item, guard, below)
        return copied

    def _guarded_text(self, text: str, guard: str) -> str:
        if self._occurrence is None or not text:
            return text
        text = _SURROGATE.sub("\ufffd", text)
        before = guard if text.startswith(self._tails) or text in self._inner else ""
        after = guard if text.endswith(self._heads) else ""
        return before + self._occurrence.sub(rf"\1{guard}", text) + after

    def encode(self, text: str, guard: str) -> list[int]:
        """Ids of a rendered text, shape (T,); no guarded text gives the id of an added token."""
        ids: list[int] = []
        tokenizer = self._first
        for piece, added in self._pieces(text):
            if added is not None:
                ids.append(added)
            elif piece != guard:
                ids += (
                    self._plain_ids(tokenizer, piece, guard)
                    if len(piece) > 64
                    else self._known(tokenizer, piece, guard)
                )
            tokenizer = self._later
        return ids

    def _known(self, tokenizer: Tokenizer, piece: str, guard: str) -> list[int]:
        """The ids of a short piece: tool names, roles and common words come again and again."""
        key = (tokenizer is self._first, piece.replace(guard, "\0"))
        ids = self._encoded.get(key)
        if ids is None:
            if len(self._encoded) >= 4096:
                self._encoded.clear()
            ids = self._encoded[key] = self._plain_ids(tokenizer, piece, guard)
        return ids

    def _plain_ids(self, tokenizer: Tokenizer, piece: str, guard: str) -> list[int]:
        ids: list[int] = tokenizer.encode(piece.replace(guard, ""), add_special_tokens=False).ids
        if self._added_ids.isdisjoint(ids):
            return ids
        # A few vocabularies reach an added token by ordinary pieces too: then the guards stay cuts.
        return [
            index
            for part in piece.split(guard)
            for index in tokenizer.encode(part, add_special_tokens=False).ids
        ]

    def _pieces(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text cut at its added tokens: each piece with the token's id, or None between them."""
        pieces: list[tuple[str, int | None]] = [(text, None)]
        for tokens, pattern in self._splitters:
            pieces = [
                cut
                for piece, added in pieces
                for cut in ([(piece, added)] if added is not None else self._cut(piece, tokens, pattern))
            ]
        return iter(pieces)

    def _cut(
        self, text: str, tokens: list[AddedToken], pattern: re.Pattern[str]
    ) -> Iterator[tuple[str, int | None]]:
        end = 0
        for match in pattern.finditer(text):
            if match.start() > end:
                yield text[end : match.start()], None
            assert match.lastindex is not None
            yield match.group(), self._ids[tokens[match.lastindex - 1].content]
            end = match.end()
        if end < len(text):
            yield text[end:], None


def _any_of(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


def _splitter(tokens: list[AddedToken]) -> tuple[list[AddedToken], re.Pattern[str]]:
    """The tokens, longest first, and a pattern with one group for each."""
    tokens = sorted(tokens, key=lambda token: len(token.content), reverse=True)
    return tokens, re.compile("|".join(map(_token_pattern, tokens)) or r"(?!)")


def _token_pattern(token: AddedToken) -> str:
    pattern = re.escape(token.content)
    if len(token.content) == 1 and not token.content.isspace():
        # It has no inside: a guard stands after it.
        pattern += f"(?![{chr(_PRIVATE_USE[0])}-{chr(_PRIVATE_USE[-1])}])"
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    left, right = (r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip))
    return f"({left}{pattern}{right})"


def _plain_tokenizers(tokenizer: Tokenizer) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer without added tokens: for the run at the beginning, and for those after a token."""
    parts = json.loads(tokenizer.to_str())
    parts |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    first = json.dumps(parts)
    # Metaspace tokenizers may mark the beginning of the text and no other run.
    later = first.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
    plain = Tokenizer.from_str(first)
    return plain, plain if later == first else Tokenizer.from_str(later)


def _with_objects(message: Message) -> dict[str, Any]:
    """A copy whose calls have their arguments as objects, where the API's format has JSON in a string."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    copied: dict[str, Any] = copy.deepcopy(dict(message))
    for call in copied["tool_calls"]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"])
            except ValueError:
                continue  # a demonstration of a malformed call: the template writes it as it is
            if isinstance(arguments, dict):
                function["arguments"] = arguments
    return copied


def _bytes(value: Any) -> bytes:
    """The value as bytes that tell it from others; empty where it cannot be written (it has lone surrogates)."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError):
        return b""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a tokenizer's configuration") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} has {type(value).__name__}; expected a JSON object")
    return value


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, by which templates mark what the assistant says; here it writes its body."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compiled(source: str) -> jinja2.Template:
    """The template in a sandbox with what transformers gives its templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"the chat template is not valid Jinja (line {error.lineno}: {error.message})"
        ) from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
