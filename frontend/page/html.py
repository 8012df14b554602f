"""The page's own pieces of HTML: places for an image, for many, and for what is said of them. `browser/` fills them."""

from __future__ import annotations

import re
from html import escape

from captioner import examples


def _credits() -> str:
    rows = re.findall(r"^\| `.*?` \| (.*?) \| (.*?) \| (.*?) \|$", (examples.FOLDER / "CREDITS.md").read_text(), re.M)
    return "; ".join(f"{what}, by {who}: {terms}" for what, who, terms in rows)


def _examples() -> str:
    buttons = "".join(
        f'<button type="button" data-example="{escape(path.name)}" aria-label="Example {escape(path.stem)}"></button>'
        for path in examples.PHOTOS
    )
    whose = f"<details><summary>Credits</summary>{escape(_credits())}</details>"
    return f"<p>Or try one of these</p><div>{buttons}</div>{whose}"


IMAGE = f"""
<div class="drop" id="image" role="group" aria-label="Image">
  <input type="file" id="image-file" accept="image/*" aria-label="Choose an image">
  <label for="image-file"><b>Drop a photo here</b><span>or click to choose one, or paste it</span></label>
  <img alt="" hidden>
  <p class="unseen" hidden>This browser cannot show this file.</p>
</div>
<div class="tools">
  <button type="button" id="camera" hidden>Take a photo</button>
  <button type="button" id="remove" hidden>Remove</button>
  <span id="image-name"></span>
</div>
<div id="shot" hidden><video autoplay playsinline muted></video><button type="button" id="shutter">Take it</button>
<button type="button" id="no-shot">Cancel</button></div>
<div id="examples">{_examples()}</div>
"""
ANSWER = '<div id="problem" role="alert"></div><div id="details" role="status"></div>'
FILES = """
<div class="drop small" id="files" role="group" aria-label="Images">
  <input type="file" id="files-file" multiple accept="image/*,.zip" aria-label="Choose images or a zip">
  <label for="files-file"><b>Drop photos, a folder or a zip here</b><span>or click to choose them</span></label>
</div>
"""
TABLE = """
<div id="batch" hidden>
  <div class="bar"><progress id="progress" value="0" max="1" aria-label="Progress"></progress>
  <p id="progress-text" role="status"></p></div>
  <div class="tools">
    <button type="button" id="download">Download captions (.zip)</button>
    <button type="button" id="clear">Clear</button>
  </div>
  <table aria-label="Captions"><thead><tr><th scope="col">Image</th><th scope="col">Caption</th></tr></thead>
  <tbody id="rows"></tbody></table>
</div>
<p id="batch-problem" role="alert"></p>
"""
ABOUT = """
<details id="about" hidden>
  <summary>About this model</summary>
  <dl></dl>
  <p>Licence, base model and intended use are as the model's own card states them.</p>
</details>
"""
