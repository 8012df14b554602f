"""The prompts of every family that follows instructions: styles by length, and extras, each of which adds a sentence.

A prompt says what the model shall write and how much of it. It knows no model.
"""

from __future__ import annotations

from captioner.artifacts.prompts import ALT_TEXT, ALT_TEXT_CHARACTERS, LONG_ALT_TEXT_CHARACTERS, PromptTable

PROMPTS = PromptTable(
    styles={
        "descriptive": {
            "short": "Describe this image in one sentence.",
            "medium": "Describe this image in one paragraph of three or four sentences.",
            "long": "Describe this image thoroughly: subject, surroundings, colors, textures and where things are.",
        },
        "casual": {
            "short": "Tell a friend in one relaxed sentence what this image shows.",
            "medium": "Tell a friend in a few relaxed sentences what this image shows.",
            "long": "Tell a friend in a relaxed tone everything worth noticing in this image.",
        },
        "straightforward": {
            "short": "State in one plain sentence what this image shows, the subject first.",
            "medium": "State in three or four plain sentences what this image shows: the subject first, then what is "
            "around it, in definite words.",
            "long": "State in plain sentences everything that this image shows: the subject first, then what is around "
            "it, in definite words, without opinions and without naming what is absent.",
        },
        ALT_TEXT: {
            "short": f"Write alt text for this image: one phrase of at most {ALT_TEXT_CHARACTERS} characters.",
            "medium": "Write alt text for this image, the most important thing first: one or two sentences of at most "
            f"{ALT_TEXT_CHARACTERS} characters together.",
            "long": "Write a long image description for a reader who cannot see it, the most important things first, "
            f"in at most {LONG_ALT_TEXT_CHARACTERS} characters.",
        },
        "training": {
            "short": "Write a plain caption of under twenty words that states only what this image shows.",
            "medium": "Write a plain caption of about fifty words that states only what this image shows.",
            "long": "Write a plain caption of about 150 words that states only what this image shows.",
        },
        "training-tags": {
            "short": "Write a training caption for this image as up to ten short phrases, separated by commas, the "
            "subject first.",
            "medium": "Write a training caption for this image as about twenty short phrases, separated by commas: the "
            "subject, its looks and actions, the setting, the style of the picture.",
            "long": "Write a training caption for this image as about forty short phrases, separated by commas: the "
            "subject, its looks and actions, the setting, light, framing, the style of the picture, small details.",
        },
        "image-prompt": {
            "short": "Write a prompt of under twenty words from which a text-to-image model would make this image.",
            "medium": "Write a prompt of about fifty words from which a text-to-image model would make this image: "
            "subject, setting, style and light.",
            "long": "Write a prompt of about 120 words from which a text-to-image model would make this image: "
            "subject, setting, composition, style, light, colors and details.",
        },
        "tags": {
            "short": "List up to eight tags for this image, separated by commas.",
            "medium": "List about twenty tags for this image, separated by commas: subjects, actions, place, colors.",
            "long": "List about forty tags for this image, separated by commas, from main subject to small details.",
        },
        "booru-tags": {
            "short": "List up to ten tags for this image as image boards write them: in lower case, with underscores "
            "for blanks, separated by commas.",
            "medium": "List about twenty-five tags for this image as image boards write them: in lower case, with "
            "underscores for blanks, separated by commas; the number of people first, then looks, clothes, actions and "
            "setting.",
            "long": "List about fifty tags for this image as image boards write them: in lower case, with underscores "
            "for blanks, separated by commas; the number of people first, then looks, clothes, poses and actions, then "
            "objects, setting, colors and style.",
        },
        "title": {
            "short": "Give this image a title of at most five words.",
            "medium": "Give this image a title of about ten words.",
            "long": "Give this image a title, and a subtitle of one sentence.",
        },
        "art-critic": {
            "short": "Judge this image in two sentences, as an art critic: what it does and whether it succeeds.",
            "medium": "Judge this image in one paragraph, as an art critic: subject, composition, color and light, and "
            "whether they succeed together.",
            "long": "Write a full review of this image, as an art critic: subject and likely meaning, style and its "
            "origins, composition, color, light and technique, and what succeeds or fails.",
        },
        "product-listing": {
            "short": "Write one sentence that offers the object in this image for sale.",
            "medium": "Write a product listing of one paragraph for the object in this image: what it is, how it looks "
            "and what it is good for.",
            "long": "Write a full product listing for the object in this image: a title, a paragraph about looks, "
            "material and use, and a list of features that can be seen.",
        },
        "social-post": {
            "short": "Write a post of one sentence to share this image with, without hashtags.",
            "medium": "Write a friendly post of two or three sentences to share this image with, and end it with two "
            "or three hashtags.",
            "long": "Write a friendly post of one or two paragraphs to share this image with: say what it shows, "
            "invite answers, and end it with up to five hashtags.",
        },
    },
    default_style="descriptive",
    default_length="medium",
    extras={
        "name": "Call the main person or character {name}.",
        "no-names": "Do not guess who anybody in the image is.",
        "no-traits": "Describe people by what they wear and do, not by traits that they cannot change.",
        "gender-neutral": "Use gender-neutral words for people.",
        "ages": "Say about how old each person looks.",
        "camera": "Say from what angle and how close the image was taken.",
        "focus": "Say what is in focus and what is blurred.",
        "lighting": "Say where the light comes from and how it falls.",
        "composition": "Say how the image is composed and what leads the eye.",
        "colors": "Name the main colors.",
        "art-medium": "Say whether this is a photo, a painting, a drawing or a rendering, and in what style.",
        "background": "Describe the background too.",
        "text": "Quote any text that can be read in the image.",
        "no-text": "Do not mention any text that can be read in the image.",
        "watermark": "Say whether the image carries a watermark.",
        "flaws": "Mention compression artifacts, noise and other technical flaws.",
        "quality": "Say whether the technical quality is low, ordinary or high.",
        "rating": "Say whether the image is safe for work, suggestive or explicit.",
        "all-ages": "Choose words that suit readers of all ages.",
        "no-artist": "Do not name the artist or the title of the work.",
        "no-guesses": "Leave out whatever cannot be seen for certain.",
        "no-mood": "Leave out moods and opinions.",
        "essentials": "Mention only what matters most.",
        "no-preamble": 'Begin with the content itself, not with words such as "This image shows".',
    },
    language="Answer in {language}, but quote any text in the image as it stands there.",
)
