"""Rewards of your own, in TRL's form: lists go in, one number a response comes out."""


def short(prompts, completions, **columns):
    """1 for a response of one word, less for longer ones, 0 from 20 words on.

    `columns` holds the records' other columns, such as `answer`, one value a response. None instead
    of a number: this reward does not apply to the response.
    """
    return [max(0.0, 1 - (len(text.split()) - 1) / 19) for text in completions]
