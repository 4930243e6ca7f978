"""Chat templates: from chats to tokens, and which of them are the assistant's.

A template is foreign code: Jinja's sandbox renders it. Its control tokens are written as text, such
as `<|im_end|>`. The same text in a message must not become a control token, so contents are cut
inside it before they are rendered, and no token spans a cut.
"""

import datetime
import json
import pathlib
import re
from collections.abc import Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers
from jaxtyping import Bool

from jaxdiv.data.chats import ASSISTANT, Chat
from jaxdiv.data.tokenizer import ChatTemplate, Tokenizer

CHATML = "chatml"
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CUT = "\0"  # stands in no chat
_DATE = datetime.datetime(2024, 7, 26)  # Llama 3's templates write it where they know no date

Message = tuple[str, str]  # role, content


def from_config(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """Returns the template that `config.data.chat_template` names, for this tokenizer.

    Args:
      name: empty for the tokenizer's own, `chatml`, or the path of a Jinja file.
      tokenizer: of the run.

    Raises:
      ValueError: the file can't be read, or the tokenizer lacks the control tokens of ChatML.
    """
    if not name:
        return tokenizer.chat_template
    if name == CHATML:
        if missing := set(CHATML_TOKENS) - set(tokenizer.control_tokens()):
            raise ValueError(
                f"`config.data.chat_template` is {CHATML}, but the tokenizer has no control token "
                f"{min(missing)}; give a Jinja file that fits the model"
            )
        return tokenizer.chat_template._replace(source=_CHATML)
    try:
        return tokenizer.chat_template._replace(source=pathlib.Path(name).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`config.data.chat_template` must be {CHATML} or a Jinja file, {name}: {error}"
        ) from None


class _Generation(jinja2.ext.Extension):
    """Renders what stands in a `{% generation %}` block."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> jinja2.Template:
    """Compiles a template with the names that transformers gives it. Raises jinja2's errors."""

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    # The tokens of a chat must not depend on the day.
    environment.globals["strftime_now"] = _DATE.strftime
    return environment.from_string(source)


class ChatEncoder:
    """Encodes chats with a tokenizer by its chat template.

    Raises ValueError if the template is no Jinja, or a control token is a single character, which
    can't be told from text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._template = tokenizer, None
        self._control = tokenizer.control_tokens()
        if short := [token for token in self._control if len(token) < 2]:
            raise ValueError(f"the control token {short[0]!r} can't be told from text in chats")
        settings = json.loads(tokenizer.to_json())
        settings["post_processor"] = None  # some move offsets
        for token in settings["added_tokens"]:
            # A normalizer must not make control tokens of what is none as it stands.
            token["normalized"] = token["normalized"] and not token["special"]
        self._bpe = tokenizers.Tokenizer.from_str(json.dumps(settings))
        first = sorted({re.escape(token[0]) for token in self._control})
        self._first = re.compile("|".join(first) or "(?!)")
        self._longest = max(map(len, self._control), default=0)
        if tokenizer.chat_template.source:
            try:
                self._template = compile_template(tokenizer.chat_template.source)
            except Exception as error:
                raise ValueError(f"the chat template can't be compiled: {_line(error)}") from None

    def encode(self, chat: Chat) -> tuple[list[int], Bool[np.ndarray, " n"]]:
        """Returns the tokens of a chat's document, and True for those that the assistant wrote.

        The assistant's turn ends with its end-of-turn token. A document begins and ends as others
        do; tokens that the template writes there are not doubled.

        Raises:
          ValueError: there is no template, it raises, or a turn's place can't be told.
        """
        text, spans = self._plain(chat) if not chat.templated else self._conversation(chat)
        end = self._tokenizer.end_of_text
        if text.rstrip().endswith(self._tokenizer.end_token):
            text = text.rstrip()
        ids, is_assistant = self._encode(text, spans)
        if begin := self._tokenizer.begin if ids[:1] != self._tokenizer.begin else []:
            ids, is_assistant = begin + ids, np.concatenate([[False], is_assistant])
        if ids[-1:] != [end]:
            is_assistant = np.append(is_assistant, any(stop == len(text) for _, stop in spans))
            ids = [*ids, end]
        is_assistant[0] = False  # no token stands before it, so that it is no label
        return ids, is_assistant

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the tokens of messages up to where the assistant's turn begins."""
        messages = [(role, self._cut(content)) for role, content in messages]
        ids, _ = self._encode(self._render(messages, True), [])
        return ids if ids[:1] == self._tokenizer.begin else self._tokenizer.begin + ids

    def _encode(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], Bool[np.ndarray, " n"]]:
        """Encodes text with cuts; tokens that begin in one of `spans` are the assistant's."""
        ids, starts, at = [], [], 0
        for piece in text.split(_CUT):
            encoding = self._bpe.encode(piece, add_special_tokens=False)
            ids += encoding.ids
            starts += [at + start for start, _ in encoding.offsets]
            at += len(piece) + len(_CUT)
        begins = np.array(starts, np.int64)
        inside = [(begins >= start) & (begins < stop) for start, stop in spans]
        return ids, np.any(inside, axis=0) if inside else np.zeros(len(ids), bool)

    def _cut(self, text: str) -> str:
        """Cuts the text of control tokens after their first character.

        The beginning of one at the end of the text is cut, too, whatever follows in the template.
        """
        parts, last = [], 0
        for match in self._first.finditer(text):
            rest = text[match.start() : match.start() + self._longest]
            is_end = match.start() + len(rest) == len(text)
            if rest.startswith(self._control) or (
                is_end and any(token.startswith(rest) for token in self._control)
            ):
                parts.append(text[last : match.end()])
                last = match.end()
        return _CUT.join([*parts, text[last:]])

    def _plain(self, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
        parts = [self._cut(content) for _, content in chat.messages]
        text = "".join(parts)
        return text, [(len("".join(parts[: chat.first])), len(text))]

    def _conversation(self, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
        """Renders a conversation; returns its text and the spans of the assistant's turns."""
        messages = [(role, self._cut(content)) for role, content in chat.messages]
        text = self._render(messages)
        spans = [
            self._span(text, messages, turn)
            for turn, (role, _) in enumerate(messages)
            # A turn before all others answers nothing.
            if role == ASSISTANT and turn >= max(chat.first, 1)
        ]
        return text, spans

    def _span(self, text: str, messages: Sequence[Message], turn: int) -> tuple[int, int]:
        """Finds an assistant's turn in the text of all messages.

        It begins where the messages before it end with a generation prompt, and ends with the token
        that ends it when it is the last one. Templates may render a last turn in another way than
        others, as Qwen 3's, so that the text up to its end need not be a beginning of the whole.
        """
        before = self._render(messages[:turn], True)
        whole = self._render(messages[: turn + 1])
        last = whole.rstrip()
        ending = max(
            (token for token in self._control if last.endswith(token)), key=len, default=""
        )
        stop = len(whole) if text.startswith(whole) else -1
        if ending:
            at = text.find(ending, len(before))
            stop = at + len(ending) if at >= 0 else -1
        if not text.startswith(before) or stop < 0:
            raise ValueError(
                "the chat template writes the messages before an assistant's turn in another way "
                "once others follow, so that the turn's place can't be told"
            )
        return len(before), stop

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        if self._template is None:
            raise ValueError(
                "the tokenizer has no chat template; set `config.data.chat_template` to a Jinja "
                f"file, or to {CHATML} for a tokenizer that has its control tokens or that the run "
                "trains"
            )
        try:
            return self._template.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self._tokenizer.chat_template.bos_token,
                eos_token=self._tokenizer.end_token,
                tools=None,
                documents=None,
            )
        except jinja2.sandbox.SecurityError as error:
            raise ValueError(f"the chat template reaches for the system: {_line(error)}") from None
        except Exception as error:  # a template can raise whatever Python can
            raise ValueError(f"the chat template raises: {_line(error)}") from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")
