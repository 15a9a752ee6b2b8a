"""Prompts in which whatever a problem or a completion spells is text and never a control token.

A prompt is rendered with places where problem and completion go, and tokenised by a copy of the
model's tokenizer in which every control token has a name that nobody can guess. Only the prompt's
own text, never what fills a place, is written in those names.
"""

import bisect
import functools
import itertools
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from optscale_jax.errors import BackendError

__all__ = ["PromptTokens", "Tokens", "neutral", "place", "tokens_of"]

_PLACE = re.compile("\ue000(\\d+)\ue001")
# The forms that control tokens have, for servers whose tokenizer is not at hand.
_CONTROL = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|<</?SYS>>|<extra_\d+>"
)

_MARKUP = re.compile(r"[<\[]\S*[>\]]")


def place(index: int) -> str:
    """What stands in a prompt where the text of this index goes."""
    return f"\ue000{index}\ue001"


def neutral(text: str) -> str:
    """A text without what looks like a control token, nor what removing one would make of it."""
    while (shorter := _CONTROL.sub("", text)) != text:
        text = shorter
    return text


class Tokens(NamedTuple):
    """A prompt.

    Attributes:
        ids: Token ids.
        ends: Index behind the last token of each mark, in order.
    """

    ids: list[int]
    ends: list[int]


class PromptTokens:
    """Tokenises prompts with places.

    Where no text spells a control token, that is how the model's tokenizer does it. Which control
    tokens a prompt has never depends on what fills the places: even one that a vocabulary makes of
    ordinary text is taken out of the texts.
    """

    def __init__(self, tokenizer: Any):
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise BackendError(
                f"the tokenizer ({type(tokenizer).__name__}) is none of the library tokenizers; "
                "give one that has a tokenizer.json"
            )
        from tokenizers import AddedToken, Tokenizer

        self._control = set(tokenizer.all_special_ids)
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # The post-processor would trim what tokens are said to cover.
        state |= {"truncation": None, "padding": None, "post_processor": None}
        unguessable = secrets.token_hex(8)
        self._names: dict[str, str] = {}
        for token in state["added_tokens"]:
            # Some vocabularies add runs of blanks and whole phrases, which are text.
            if token["special"] or _MARKUP.fullmatch(token["content"]):
                self._control.add(token["id"])
                name = f"\U000f0000{unguessable}{token['id']}\U000f0001"
                self._names[token["content"]] = token["content"] = name
        self._backend = Tokenizer.from_str(json.dumps(state))
        number = self._backend.token_to_id
        # The copy numbers its added tokens anew.
        self._ids = {number(token["content"]): token["id"] for token in state["added_tokens"]}
        self._own = {number(name) for name in self._names.values()}
        self._apart = f"\U000f0000{unguessable}\U000f0001"
        self._backend.add_tokens([AddedToken(self._apart, normalized=False)])
        longest_first = sorted(self._names, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(
        self,
        prompt: str,
        texts: Sequence[str],
        *,
        begin: Sequence[int] = (),
        mark: str = "",
        apart: bool = False,
        reserved: bool = False,
    ) -> Tokens:
        """Tokenises a prompt.

        Args:
            prompt: Its own text, with a `place` for each text.
            texts: What fills the places.
            begin: Tokens that it begins with.
            mark: What follows each place but the first, and whose end is wanted; "" for none.
            apart: Whether a mark is tokenised apart from the texts around it.
            reserved: Whether the texts must not make a mark's token.

        Returns:
            The prompt's tokens.

        Raises:
            BackendError: If the prompt lacks a place or a mark.
        """
        parts = _PLACE.split(prompt)
        if sorted(map(int, parts[1::2])) != list(range(len(texts))):
            raise BackendError("the chat template does not write each message once, as it is")
        # Even pieces are the prompt's own, odd ones fill places. Half a surrogate pair is no text.
        pieces = [
            texts[int(part)].encode(errors="replace").decode() if i % 2 else self._named(part)
            for i, part in enumerate(parts)
        ]
        named, ids, own, told = self._named(mark), self._ids, self._own, self._control
        if mark:
            id = ids.get(token := self._backend.encode(named).ids[-1], token)
            if reserved:
                told = told | {id}
            if apart:
                copied = self._backend.token_to_id(self._apart)
                ids, own = ids | {copied: id}, own | {copied}
                pieces[4::2] = [one.replace(named, self._apart, 1) for one in pieces[4::2]]
                named = self._apart
        while True:
            found = self._backend.encode("".join(pieces), add_special_tokens=False)
            strays = [
                span
                for token, span in zip(found.ids, found.offsets, strict=True)
                if token not in own and ids.get(token, token) in told
            ]
            if not strays or (shorter := _without(strays, pieces)) == pieces:
                break
            pieces = shorter
        ends, start, starts = [], 0, [low for low, _ in found.offsets]
        for i, piece in enumerate(pieces):
            if mark and i >= 4 and i % 2 == 0:
                if (at := piece.find(named)) < 0:
                    raise BackendError(f"the chat template does not write {mark!r} after a step")
                ends.append(len(begin) + bisect.bisect_left(starts, start + at + len(named)))
            start += len(piece)
        return Tokens([*begin, *(ids.get(token, token) for token in found.ids)], ends)

    def _named(self, text: str) -> str:
        return self._spelt.sub(lambda match: self._names[match[0]], text)


def _without(spans: Sequence[tuple[int, int]], pieces: Sequence[str]) -> list[str]:
    """The pieces, those that fill places without the characters of the spans."""
    cut = {i for span in spans for i in range(*span)}
    starts = itertools.accumulate(map(len, pieces), initial=0)
    return [
        "".join(c for j, c in enumerate(piece, start) if j not in cut) if i % 2 else piece
        for i, (start, piece) in enumerate(zip(starts, pieces, strict=False))
    ]


@functools.lru_cache(maxsize=16)
def tokens_of(tokenizer: Any) -> PromptTokens:
    """The one of a tokenizer, which takes a second to make for a large vocabulary."""
    return PromptTokens(tokenizer)
