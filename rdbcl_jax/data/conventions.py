"""What a row asks, whatever its columns are called: question, images, answer, system message.

| convention | question | answer | images |
|---|---|---|---|
| TRL | `prompt` (text or chat messages) | `answer` or `solution` | `image` or `images` |
| EasyR1 | `problem` | `answer` | `images` |
| VLM-R1, LLaVA | `conversations`, first turn | its second turn, or `solution` | `image` |
| verl | `prompt` (chat messages) | `reward_model.ground_truth` | `images` |
| chats | `messages`, the user's turn | the assistant's, or `answer` | in it, or `images` |
| VQA | `question` | `answers`: any of them is right | `image` |

A text in the column `system` is the system message, of messages that have none.
An image is a path relative to its file, the bytes of a picture file, those in base64 (as they are,
or a data URL), `{"bytes": …, "path": …}`, or `{"path": "x.parquet", "row": 7, "column": "image"}`,
where in another file it is. Data sets of other columns are read by a layout
(`rdbcl_jax.data.layouts`), which gives its rows the names above.
"""

from __future__ import annotations

import base64
import binascii
import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from rdbcl_jax.data.pictures import Picture, Stored
from rdbcl_jax.data.values import short

IMAGE_MARK = "<image>"  # where in a prompt an image stands
VIDEO_MARK = "<video>"  # where others have one
PROMPTS = ("prompt", "problem", "question", "conversations", "messages")
ANSWERS = ("answer", "solution", "answers")
IMAGES = ("images", "image")
VIDEOS = ("videos", "video")
USED = frozenset({"answer", *PROMPTS, *IMAGES, *VIDEOS})
_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
_INLINE = ("image", "image_url", "url", "path", "base64", "bytes")  # where a part has its image
# how picture files of the usual formats begin in base64: PNG, JPEG, GIF, WebP, BMP, TIFF
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")


class Asked(NamedTuple):
    """What a row asks.

    Attributes:
      prompt: holds `<image>` once per image, or not at all.
      answer: the gold one; a list where any of several is right.
    """

    prompt: str
    images: tuple[Picture, ...]
    answer: Any
    system: str


def asked(columns: Mapping[str, Any], folder: Path) -> Asked:
    """What the row of these columns asks; its file lies in `folder`.

    Raises:
      ValueError: what is missing or cannot be read: what was found, what was expected.
    """
    for name in VIDEOS:
        if columns.get(name):
            raise ValueError(_no_video(f"column {name!r}"))
    prompt, second_turn, inline, system = _question(columns)
    images = _images(columns, inline, folder)
    _check_marks(prompt, images)
    return Asked(prompt, images, _answer(columns, second_turn), system)


def chat_of(columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The messages of the row's question in the form of role and content, without the answer; None
    where the question is a text."""
    value = _first(columns, PROMPTS)
    if not isinstance(value, list):
        return None
    chat = [{"role": role, "content": content} for role, content in _turns(value)]
    chat = [turn for turn in chat if turn["role"] != "assistant"]
    beside = _system_beside(columns)
    if beside and all(turn["role"] != "system" for turn in chat):
        chat.insert(0, {"role": "system", "content": beside})
    return chat


def _turns(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Role and content of each, whatever their fields and roles are called."""
    for turn in messages:
        role = str(turn.get("role", turn.get("from")))
        yield _ROLES.get(role, role), turn.get("content", turn.get("value"))


def _system_beside(columns: Mapping[str, Any]) -> str:
    system = columns.get("system")
    return system if isinstance(system, str) else ""


def _first(columns: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these columns that holds something, else None."""
    return next((columns[name] for name in names if columns.get(name) is not None), None)


# --- the question --------------------------------------------------------------------------------


def _question(columns: Mapping[str, Any]) -> tuple[str, str | None, list[Any], str]:
    """The question, the second turn, images inside messages, and the system message."""
    value = _first(columns, PROMPTS)
    if value is None:
        raise ValueError(
            f"found the columns {sorted(columns)}; expected a question in one of "
            f"{', '.join(PROMPTS)}, or a format in the task's config that says where it is"
        )
    if isinstance(value, str):
        return value, None, [], _system_beside(columns)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(f"question: expected text or a list of messages, found {short(value)}")
    turns = collections.defaultdict(list)
    images: list[Any] = []
    for role, content in _turns(value):
        before = len(images)
        text = _content(content, images)
        if role == "assistant" and (len(images) > before or IMAGE_MARK in text):
            raise ValueError(
                "found an image in the assistant's message, expected an answer in text"
            )
        turns[role].append(text)
    roles = {role: len(texts) for role, texts in turns.items()}
    if roles.pop("user", 0) != 1 or any(roles.pop(r, 0) > 1 for r in ("system", "assistant")):
        raise ValueError(
            f"found messages of {[str(t.get('role', t.get('from'))) for t in value]}; expected one "
            "of the user, with at most one of the system and one of the assistant (the answer); "
            "join a longer conversation into one question"
        )
    if roles:
        raise ValueError(f"found messages of {sorted(roles)}; expected user, system, assistant")
    second = turns["assistant"][0] if turns["assistant"] else None
    system, beside = "".join(turns["system"]), _system_beside(columns)
    if system and beside and system != beside:
        raise ValueError(
            f"found two system messages, {short(system)} among the messages and {short(beside)} in "
            "the column 'system'; expected one"
        )
    return turns["user"][0], second, images, system or beside


def _content(content: Any, images: list[Any]) -> str:
    """A message's text, images marked; images that come with the message are appended to `images`.

    Parquet unifies the fields of all parts, so absent ones are None rather than missing.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"message: expected text or a list of parts, found {short(content)}")
    texts = []
    for part in content:
        kind = str(part.get("type"))
        if kind.startswith("video"):
            raise ValueError(_no_video("message"))
        if kind in ("image", "image_url"):
            if (image := _first(part, _INLINE)) is not None:
                images.append(image)
            texts.append(IMAGE_MARK)
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ValueError(f"message part: expected a text or an image, found {short(part)}")
    return "".join(texts)


def _no_video(where: str) -> str:
    return (
        f"found a video in its {where}, and only images are read; give some of its frames as "
        "images, or leave the record out"
    )


def _check_marks(prompt: str, images: Sequence[Picture]) -> None:
    if not prompt.strip():
        raise ValueError("the question is empty")
    if VIDEO_MARK in prompt:
        raise ValueError(_no_video("question"))
    marks = prompt.count(IMAGE_MARK)
    if marks not in (0, len(images)):
        raise ValueError(
            f"found {marks} {IMAGE_MARK} in the question and {len(images)} images; expected as "
            f"many as images, or no {IMAGE_MARK} at all (then images go before the text)"
        )


# --- the answer ----------------------------------------------------------------------------------


def _answer(columns: Mapping[str, Any], second_turn: str | None) -> Any:
    """The gold answer, or a list of answers any of which is right."""
    value = _first(columns, ANSWERS)
    if value is None and isinstance(judged := columns.get("reward_model"), Mapping):
        value = judged.get("ground_truth")
    value = second_turn if value is None else value
    if isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value):
        # VizWiz's annotators: {"answer": "2", "answer_confidence": "yes"}
        value = (
            [one.get("answer") for one in value] if all("answer" in one for one in value) else value
        )
    if value is None:
        found = f"found the columns {sorted(columns)}"
        if empty := [name for name in ANSWERS if name in columns]:
            found = f"{empty[0]}: found nothing (null)"
        raise ValueError(
            f"{found}; expected an answer in one of "
            f"{', '.join(ANSWERS)}, in reward_model.ground_truth, or a second turn in conversations"
        )
    return value


# --- images --------------------------------------------------------------------------------------


def _images(columns: Mapping[str, Any], inline: list[Any], folder: Path) -> tuple[Picture, ...]:
    """Images of the first column that holds any, else those of the messages."""
    for name in IMAGES:
        value = columns.get(name)
        several = value if isinstance(value, list | tuple) else [value]
        if value is not None and len(several):
            return tuple(_image(item, folder) for item in several)
    return tuple(_image(item, folder) for item in inline)


def _image(item: Any, folder: Path) -> Picture:
    given = item
    if isinstance(item, Mapping) and isinstance(item.get("row"), int):
        if not all(isinstance(item.get(name), str) for name in ("path", "column")):
            raise ValueError(f"image: expected {{path, row, column}}, found {short(given)}")
        place = folder / item["path"]
        return Stored(place, item["row"], item["column"], int(item.get("position") or 0))
    if isinstance(item, Mapping):
        item = _first(item, ("bytes", "path", "url"))
    if isinstance(item, bytes | Image.Image):
        return item
    if isinstance(item, str) and (encoded := _encoded(item)) is not None:
        return encoded
    if isinstance(item, str | Path) and str(item).strip():
        return folder / item
    raise ValueError(f"image: expected a path, bytes or {{bytes, path}}, found {short(given)}")


def _encoded(text: str) -> bytes | None:
    """The bytes of a picture that a text holds in base64; None for a path.

    Raises:
      ValueError: the text is the address of a picture that is elsewhere.
    """
    if text.startswith(("http://", "https://")):
        raise ValueError(
            f"image: found the address {short(text)}, and nothing is fetched while a run reads; "
            "download the picture once and give its path, or its bytes"
        )
    head, comma, body = text.partition(",")
    if head.startswith("data:") and comma:
        if not head.endswith(";base64"):
            raise ValueError(f"image: found a data URL {short(head)}, expected one in base64")
    elif text.startswith(_BASE64) and len(text) > 40:
        body = text
    else:
        return None
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error as error:
        if body is text:  # a path, after all
            return None
        raise ValueError(f"image: found a data URL that is no base64 ({error})") from None
