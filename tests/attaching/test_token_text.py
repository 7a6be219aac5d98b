"""The text of token ids, from a tokenizer that somebody else uses at the same time."""

import random
import threading

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rollcast.attaching.token_text import CopiedTokenReader, TextOfIds, TokenReader
from rollcast.models.tiny.backend import CHECKPOINT

TEXT = "What is 12 × 34? 🙂 Ünïcode, 漢字 <|im_end|>\n  indented\ttabs"


def byte_level():
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def metaspace():
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *bytes_], show_progress=False)
    made.train_from_iterator(["What is the answer to this", "the answer is what this is"], trainer)
    return made


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_a_text_is_what_the_tokenizer_decodes(make):
    """With special tokens, and however many ids come at once."""
    tokenizer = make()
    reader, draw = TokenReader(tokenizer), random.Random(0)
    for text in (TEXT, "🙂" * 40, "", "a"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.decode(ids, skip_special_tokens=False)
        assert reader.text(ids) == whole
        stream, pieces, at = TextOfIds(reader), [], 0
        while at < len(ids):
            count = draw.randint(1, 3)
            pieces.append(stream.feed(ids[at : at + count]))
            at += count
        assert "".join(pieces) + stream.end() == whole
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_shown_as_such():
    """A model may stop inside a character."""
    tokenizer = byte_level()
    ids = tokenizer.encode("🙂", add_special_tokens=False).ids
    stream = TextOfIds(TokenReader(tokenizer))
    assert len(ids) > 1
    assert stream.feed(ids[:-1]) == ""
    assert set(stream.end()) == {"\N{REPLACEMENT CHARACTER}"}
    assert stream.end() == ""


def test_ids_that_the_vocabulary_lacks_have_no_text():
    """Models pad their vocabulary, and random weights sample from the padding."""
    tokenizer = byte_level()
    ids = tokenizer.encode("ab", add_special_tokens=False).ids
    assert TokenReader(tokenizer).text([*ids, 10**6]) == "ab"


def test_whoever_changes_the_tokenizer_meanwhile_is_not_disturbed():
    """An encoder that sets truncation would raise "Already borrowed" if a decoder held the tokenizer."""
    tokenizer = byte_level()
    reader, ids = TokenReader(tokenizer), tokenizer.encode(TEXT * 50).ids
    stop, texts = threading.Event(), {reader.text(ids)}

    def read():
        while not stop.is_set():
            texts.add(reader.text(ids))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for length in range(2000):
            tokenizer.enable_truncation(length + 1)
            tokenizer.no_truncation()
    finally:
        stop.set()
        thread.join()
    assert len(texts) == 1  # and whoever reads meanwhile gets the same text each time


def test_another_kind_of_tokenizer_is_refused():
    """Whoever asks shows no text then."""
    with pytest.raises(AttributeError):
        TokenReader(object())


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_special_tokens_have_no_text_if_they_are_left_out(make):
    """That is what a trainer gives its reward functions."""
    tokenizer = make()
    tokenizer.add_special_tokens(["<|im_end|>"])
    reader, ids = TokenReader(tokenizer, special=False), tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert reader.text(ids) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "<|im_end|>" not in reader.text(ids)


class InPython:
    """A tokenizer of transformers that is written in Python, as far as it is used here: a character has two ids, 0 is special."""

    def decode(self, ids, skip_special_tokens):
        kept = [i for i in ids if i or not skip_special_tokens]
        pairs = ["".join(chr(i) for i in kept[at : at + 2]) for at in range(0, len(kept), 2)]
        return "".join(pair[0] if len(pair) == 2 else "\N{REPLACEMENT CHARACTER}" for pair in pairs)


def test_a_tokenizer_that_is_written_in_python_is_read_by_a_copy():
    """Its own methods let other threads run, who may change it."""
    tokenizer = InPython()
    stream = TextOfIds(CopiedTokenReader(tokenizer, special=False))
    tokenizer.decode = None  # whatever happens to it
    ids = [ord(letter) for letter in "aabbcc"]
    assert [stream.feed([i]) for i in ids[:4]] == ["", "a", "", "b"]
    assert stream.rest([*ids[4:], 0]) == "c"
