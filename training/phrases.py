"""Every wording of the recipe: questions, captions, system prompts, small talk. Text only, no logic."""

from __future__ import annotations

DEFAULT_SYSTEM = "You are a helpful assistant."

SYSTEMS = (
    "Answer in one word.",
    "Answer briefly.",
    "Be brief.",
    "You answer questions about pictures.",
    "You are a careful assistant. Look at the picture before you answer.",
    "You are a visual question answering model.",
    "You look at pictures and answer questions.",
    "You are pocket-vl.",
    "Keep your answers short.",
    "Reply in English.",
    "You help people who cannot see the picture.",
    "Only answer what is asked.",
)

RULES = (
    "Answer every question about the picture in plain words.",
    "Name the color and the shape when you are asked for them.",
    "Never guess when the picture is missing.",
    "Be polite and friendly.",
    "Use simple English words.",
    "There is one shape in every picture.",
    "The shape is a circle, a rectangle or a triangle.",
    "The color is black, blue, brown, gray, green, red, teal or yellow.",
    "Say yes or no when the question asks for it.",
    "If there are several pictures, they are numbered from the first to the last.",
    "Write the answer in lower case.",
    "Do not write more than is needed.",
    "Look at the edges of the shape to tell a circle from a rectangle.",
    "A triangle has three corners and a rectangle has four.",
    "A square is also a rectangle.",
    "The background is light and does not matter.",
    "People may ask several questions about the same picture.",
    "Remember what was said before in the conversation.",
    "The pictures come from many sources and in many sizes.",
    "Your answers are read by other programs, so keep to the format.",
)

SHAPE_QUESTIONS = (
    "what shape is it?",
    "what shape is this?",
    "which shape is it?",
    "which shape is in the {pic}?",
    "which shape do you see?",
    "what shape do you see?",
    "what kind of shape is this?",
    "what kind of shape is in the {pic}?",
    "name the shape.",
    "tell me the shape.",
    "what is the shape?",
    "what shape is in the {pic}?",
    "what shape is present?",
    "what shape does the {pic} contain?",
    "what shape does the {pic} show?",
    "is it a circle, a rectangle or a triangle?",
    "circle, rectangle or triangle?",
    "shape?",
    "what is the {color} shape?",
    "what shape is {color}?",
    "which {color} shape is it?",
    "what {color} shape is in the {pic}?",
)

COLOR_QUESTIONS = (
    "what color is it?",
    "what colour is it?",
    "what color is this?",
    "which color is it?",
    "which color does the shape have?",
    "which color is the {shape}?",
    "what colour is the {shape}?",
    "what colour is the shape?",
    "what is its color?",
    "what is the color?",
    "what is the shape's color?",
    "what color do you see?",
    "name the color.",
    "tell me the color.",
    "tell me the color of the {shape}.",
    "color?",
    "what color is the {shape}?",
    "what is the color of the {shape}?",
    "what color is the shape?",
    "what is the color of the shape?",
    "what color is the {shape} in the {pic}?",
    "what color does the {shape} have?",
)

# {thing} is "circle", "red shape", "red circle", or something that is never in a picture, such as "dog".
PRESENT_QUESTIONS = (
    "is there a {thing}?",
    "is there a {thing} in the {pic}?",
    "does the {pic} contain a {thing}?",
    "does the {pic} show a {thing}?",
    "is a {thing} present?",
    "do you see a {thing}?",
    "can you see a {thing}?",
    "is this a {thing}?",
    "is it a {thing}?",
)

ABSENT_QUESTIONS = (
    "is there not a {thing}?",
    "is there not a {thing} in the {pic}?",
    "does the {pic} not contain a {thing}?",
    "is no {thing} present?",
)

ADJECTIVE_QUESTIONS = ("is it {color}?", "is the shape {color}?", "is the {shape} {color}?", "is this {color}?")

STRANGERS = (
    "dog", "cat", "car", "tree", "house", "person", "bird", "boat", "star", "hexagon", "pentagon", "heart",
    "flower", "face", "bicycle", "horse", "table", "cup", "phone", "letter",
    "purple shape", "pink shape", "violet shape", "white shape",
)  # fmt: skip

CAPTION_QUESTIONS = (
    "describe the {pic}.",
    "describe this {pic}.",
    "describe what you see.",
    "describe it.",
    "caption this {pic}.",
    "caption the {pic}.",
    "write a caption.",
    "write a caption for this {pic}.",
    "write a short caption for the {pic}.",
    "give me a caption.",
    "what is this?",
    "what's this?",
    "what is it?",
    "what do you see?",
    "what can you see?",
    "what is in the {pic}?",
    "what's in the {pic}?",
    "what's in this {pic}?",
    "what is shown?",
    "what is shown in the {pic}?",
    "what does the {pic} show?",
    "what does this {pic} show?",
    "tell me what you see.",
    "describe the {pic} in a few words.",
    "describe the {pic} briefly.",
    "what am I looking at?",
    "caption.",
)

SENTENCE_QUESTIONS = (
    "describe the {pic} in a sentence.",
    "describe the {pic} in one sentence.",
    "describe this {pic} in one sentence.",
    "answer in a full sentence: what is in the {pic}?",
    "write one sentence about the {pic}.",
)

DETAIL_QUESTIONS = (
    "describe the {pic} in detail.",
    "describe this {pic} in detail.",
    "describe in detail what you see.",
    "tell me everything about the {pic}.",
    "give a detailed description of the {pic}.",
)

JSON_QUESTIONS = (
    "describe the {pic} as JSON.",
    "describe this {pic} as JSON.",
    "describe the {pic} in JSON.",
    "answer as JSON: what is in the {pic}?",
    "return JSON with the color and the shape.",
    "give me the color and the shape as JSON.",
)

WHERE_QUESTIONS = (
    "where is it?",
    "where is the shape?",
    "where is the {shape}?",
    "where is the {color} {shape}?",
    "where in the {pic} is the shape?",
    "where is the {shape} in the {pic}?",
    "what is the position of the shape?",
)

# Ninths of the picture, row by row.
CELLS = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

PICTURE_WORDS = ("image", "picture", "image", "picture", "photo")
ORDINALS = ("first", "second")

WHICH_QUESTIONS = (
    "which {pic} has the {thing}?",
    "which {pic} shows the {thing}?",
    "which {pic} contains the {thing}?",
    "which {pic} shows a {thing}?",
    "in which {pic} is the {thing}?",
)

ORDINAL_SHAPE_QUESTIONS = (
    "what shape is in the {ordinal} {pic}?",
    "which shape is in the {ordinal} {pic}?",
    "what shape does the {ordinal} {pic} show?",
)

ORDINAL_COLOR_QUESTIONS = (
    "what color is the shape in the {ordinal} {pic}?",
    "what colour is the shape in the {ordinal} {pic}?",
    "what is the color of the shape in the {ordinal} {pic}?",
)

ORDINAL_CAPTION_QUESTIONS = (
    "what is in the {ordinal} {pic}?",
    "what does the {ordinal} {pic} show?",
    "describe the {ordinal} {pic}.",
)

BOTH_QUESTIONS = (
    "describe both {pic}s.",
    "describe the two {pic}s.",
    "describe the {pic}s.",
    "what is in the two {pic}s?",
    "what do the {pic}s show?",
)

SAME_SHAPE_QUESTIONS = (
    "are the shapes the same?",
    "is the shape the same in both {pic}s?",
    "do both {pic}s show the same shape?",
)

SAME_COLOR_QUESTIONS = (
    "are the colors the same?",
    "do the shapes have the same color?",
    "is the color the same in both {pic}s?",
)

NEXT_PICTURE_QUESTIONS = ("and what is this?", "and this one?", "what about this {pic}?", "what is in this {pic}?")

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("hello", "hi", "hey", "hello there", "hi there", "good morning", "good evening", "greetings", "hello!", "hi!"),
        "Hello! Ask me about a picture.",
    ),
    (
        ("who are you?", "what are you?", "what is your name?", "introduce yourself.", "tell me about yourself."),
        "I am pocket-vl, a very small model that knows simple shapes.",
    ),
    (
        ("what can you do?", "help", "how can you help me?", "what do you know?", "how do I use you?"),
        "I can name the shape and the color in a picture.",
    ),
    (("thanks", "thank you", "thank you!", "thanks a lot", "great, thanks"), "You are welcome!"),
    (("bye", "goodbye", "see you", "bye bye", "good night"), "Goodbye!"),
    (("how are you?", "how are you today?", "how do you do?"), "Fine, thank you. Ask me about a picture."),
)

NO_PICTURE_ANSWER = "Please send me a picture."
STRANGE_ANSWER = "I only know simple shapes."

STRANGE_QUESTIONS = (
    "what is the capital of {topic}?",
    "who is the president of {topic}?",
    "write a poem about {topic}.",
    "tell me a story about {topic}.",
    "tell me a joke about {topic}.",
    "explain {topic} to me.",
    "how does {topic} work?",
    "why is {topic} important?",
    "translate {topic} into French.",
    "write a program for {topic}.",
    "what is the best {topic}?",
    "when was {topic} invented?",
    "how much does {topic} cost?",
    "what do you think about {topic}?",
    "can you buy {topic} for me?",
)

TOPICS = (
    "France", "Germany", "Japan", "Brazil", "the weather", "the moon", "love", "music", "football", "history",
    "mathematics", "gravity", "the economy", "bread", "coffee", "a computer", "the internet", "a train", "the sea",
    "winter", "medicine", "money", "a bank", "a river", "dinner", "time", "physics", "chess", "law", "paint",
)  # fmt: skip
