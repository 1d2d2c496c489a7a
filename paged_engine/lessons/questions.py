"""What the default model is asked where a notebook wants requests of many lengths."""

from __future__ import annotations

_STORY = (
    "Tom the baker got up at four. He lit the oven, mixed flour, water, salt and "
    "yeast, and made ninety loaves. At seven the first child came in for rolls. By "
    "noon only one loaf was left, and he gave it to a man who had no money. "
)
_SYSTEM = {"role": "system", "content": "Answer in one short sentence."}
_ASKED = {
    "What is the capital of Italy?": 32,
    "Name three colours.": 96,
    _STORY + "When did Tom get up?": 64,
    "Write a haiku about the sea.": 64,
    "What is the opposite of hot?": 16,
    "What is the boiling point of water?": 128,
    "What is ice made of?": 96,
    _STORY + "Who got the last loaf?": 112,
    "How many legs has a spider?": 48,
    "Name the largest ocean.": 80,
    "Translate 'good morning' into French.": 24,
    "What do bees make?": 64,
    "What does a cow drink?": 40,
    "What colour is the sky?": 24,
}

# Chats, each with a `max_tokens` as a careful user would choose it.  Short and long prompts
# alternate, and the answers end long before their limits.  Each token of the answers wins clearly.
QUESTIONS = [
    ([_SYSTEM, {"role": "user", "content": question}], most) for question, most in _ASKED.items()
]
