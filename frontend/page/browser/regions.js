// The places that a caption names, drawn over the image. Screen readers hear their labels as the caption.

const SVG = "http://www.w3.org/2000/svg";

// Draws the regions of a caption's details; null removes those of another caption.
export function drawRegions(details) {
  const drawing = document.querySelector("#image svg");
  const { width, height } = details?.image ?? { width: 1, height: 1 };
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.style.fontSize = `${Math.max(width, height) / 40}px`;
  drawing.replaceChildren(...(details?.regions ?? []).flatMap(({ label, box, polygon }) => {
    const corners = polygon ?? cornersOf(box);
    const shape = document.createElementNS(SVG, "polygon");
    shape.setAttribute("points", corners.map((corner) => corner.join(",")).join(" "));
    const text = document.createElementNS(SVG, "text");
    const [x, y] = corners.reduce((one, other) => (other[1] < one[1] ? other : one));
    text.setAttribute("x", x);
    text.setAttribute("y", y);
    text.textContent = label;
    return [shape, text];
  }));
}

const cornersOf = ([left, top, right, bottom]) => [[left, top], [right, top], [right, bottom], [left, bottom]];
