"""The page's own HTML: areas for images, results and the model's card. The scripts in `browser/` fill them."""

from __future__ import annotations

import re
from html import escape

from captioner import examples
from captioner.image.formats import FORMATS, SUFFIXES

# File types that a file input offers. Suffixes too, since systems disagree on the MIME types of HEIC and ICO.
IMAGE_TYPES = ",".join([*(each.mime for each in FORMATS), *SUFFIXES])


def _credits() -> str:
    rows = re.findall(r"^\| `.*?` \| (.*?) \| (.*?) \| (.*?) \|$", (examples.FOLDER / "CREDITS.md").read_text(), re.M)
    return "; ".join(f"{title}, by {author}: {license_}" for title, author, license_ in rows)


def _examples() -> str:
    buttons = "".join(
        f'<button type="button" data-example="{escape(path.name)}" aria-label="Example {escape(path.stem)}"></button>'
        for path in examples.PHOTOS
    )
    credit = f"<details><summary>Photo credits</summary>{escape(_credits())}</details>"
    return f"<p>Or try an example</p><div>{buttons}</div>{credit}"


IMAGE = f"""
<div class="drop" id="image" role="group" aria-label="Image">
  <input type="file" id="image-file" accept="{IMAGE_TYPES}" aria-label="Choose an image">
  <label for="image-file"><b>Choose a photo</b><span>or drop or paste it here</span></label>
  <div class="picture"><img alt="" hidden><svg preserveAspectRatio="none" aria-hidden="true"></svg></div>
  <p class="no-preview" hidden>This browser cannot display this file. The server may still read it.</p>
</div>
<div class="tools">
  <button type="button" id="camera" hidden>Take a photo</button>
  <button type="button" id="remove" hidden>Remove</button>
  <span id="image-name"></span>
</div>
<p class="note" id="image-note" role="status"></p>
<p class="note" id="kept">The image stays in this browser until you ask for a caption. The server does not keep it.</p>
<div id="shot" hidden><video autoplay playsinline muted></video><button type="button" id="shutter">Take photo</button>
<button type="button" id="no-shot">Cancel</button></div>
<div id="examples">{_examples()}</div>
"""
RESULT = """
<div class="tools"><button type="button" id="save">Save as .txt</button></div>
<section id="takes" aria-label="Captions to choose from" hidden><p>Choose one of these</p><ol></ol></section>
<div id="problem" role="alert"></div><div id="details"></div><p class="unseen" id="said" role="status"></p>
"""
FILES = f"""
<div class="drop small" id="files" role="group" aria-label="Images">
  <input type="file" id="files-file" multiple accept="{IMAGE_TYPES},.zip" aria-label="Choose images or a zip file">
  <label for="files-file"><b>Choose photos or a zip file</b><span>or drop them here, or a folder</span></label>
</div>
<details id="left-out" hidden><summary></summary><ul></ul></details>
"""
TABLE = """
<div id="batch" hidden>
  <div class="bar"><progress id="progress" value="0" max="1" aria-label="Progress"></progress>
  <p id="progress-text"></p></div>
  <div class="tools">
    <button type="button" id="download">Download captions (.zip)</button>
    <button type="button" id="undo">Undo</button>
    <button type="button" id="clear">Clear</button>
    <label>Show <select id="filter"></select></label>
  </div>
  <details id="replace"><summary>Find and replace</summary><form class="tools">
    <label>Find <input id="find" autocomplete="off"></label>
    <label>Replace with <input id="replacement" autocomplete="off"></label>
    <button>Replace all</button><span id="found" role="status"></span>
  </form></details>
  <ol id="rows" aria-label="Captions"></ol>
  <p id="none" class="note" hidden>No such captions.</p>
  <p class="note keys">Alt with ↓ or ↑ goes to the next or the previous caption, Ctrl+Z undoes.</p>
</div>
<p id="batch-problem" role="alert"></p><p class="unseen" id="batch-said" role="status"></p>
"""
MEMORY = """
<div class="tools" id="memory"><span>These choices are remembered in this browser only.</span>
<button type="button" id="forget">Forget them</button><span id="forgotten" role="status"></span></div>
"""
ABOUT = """
<details id="about" hidden>
  <summary>About this model</summary>
  <dl></dl>
  <p>Licence, base model and intended use are quoted from the model's card.</p>
</details>
"""
