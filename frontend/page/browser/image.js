// The one image: dropped, pasted, chosen, photographed or an example. It stays in the browser until a caption is asked.

let current = null;
let changed = () => {};
const of = (selector) => document.querySelector(selector);

export const image = () => current;

export function watchImage(onChange) {
  changed = onChange;
  const input = of("#image-file");
  input.addEventListener("change", () => input.files[0] && show(input.files[0]));
  of("#remove").addEventListener("click", () => show(null));
  of("#image img").addEventListener("error", () => (of("#image .unseen").hidden = !current));
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file && of("#image").offsetParent) {
      event.preventDefault();
      show(file);
    }
  });
  dropping(of("#image"), (items) => items.files[0] && show(items.files[0]));
  for (const button of document.querySelectorAll("[data-example]")) offer(button);
  photograph();
}

export function dropping(place, onDrop) {
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  for (const name of ["dragleave", "drop"]) place.addEventListener(name, () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    onDrop(event.dataTransfer);
  });
}

function show(file) {
  const preview = of("#image img");
  URL.revokeObjectURL(preview.src);
  current = file;
  of("#image-file").value = "";
  of("#image").classList.toggle("full", Boolean(file));
  of("#image .unseen").hidden = true;
  of("#remove").hidden = preview.hidden = !file;
  of("#image-name").textContent = file ? file.name : "";
  preview.alt = file ? `The image to caption: ${file.name}` : "";
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
  changed();
}

function offer(button) {
  const name = button.dataset.example;
  const url = new URL(`../examples/${name}`, import.meta.url);
  button.append(Object.assign(new Image(), { src: url, alt: "" }));
  button.addEventListener("click", async () => show(new File([await (await fetch(url)).blob()], name)));
}

function photograph() {
  const [shot, video] = [of("#shot"), of("#shot video")];
  if (!navigator.mediaDevices?.getUserMedia) return; // only pages on this machine or behind TLS have it
  const close = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    shot.hidden = true;
  };
  of("#camera").hidden = false;
  of("#camera").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      shot.hidden = false;
    } catch {
      of("#image-name").textContent = "No camera can be used here.";
    }
  });
  of("#no-shot").addEventListener("click", close);
  of("#shutter").addEventListener("click", () => {
    const { videoWidth: width, videoHeight: height } = video;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => {
      close();
      show(new File([blob], "photo.jpg", { type: "image/jpeg" }));
    }, "image/jpeg", 0.95);
  });
}
