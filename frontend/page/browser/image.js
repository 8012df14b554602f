// The one image: dropped, pasted, chosen, photographed or an example. It leaves the browser only for a caption.

import { fit } from "./shrink.js";

let current = null; // a promise of { file, from }; see shrink.js
let changed = () => {};
const of = (selector) => document.querySelector(selector);

export const image = () => current;

export function watchImage(onChange) {
  changed = onChange;
  const input = of("#image-file");
  input.addEventListener("change", () => input.files[0] && show(input.files[0]));
  of("#remove").addEventListener("click", () => show(null));
  of("#image img").addEventListener("error", () => (of("#image .no-preview").hidden = !current));
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file && of("#image").offsetParent) {
      event.preventDefault();
      show(file);
    }
  });
  watchDrop(of("#image"), (data) => data.files[0] && show(data.files[0]));
  for (const button of document.querySelectorAll("[data-example]")) addExample(button);
  watchCamera();
}

export function watchDrop(area, onDrop) {
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.add("over");
  });
  for (const name of ["dragleave", "drop"]) area.addEventListener(name, () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    onDrop(event.dataTransfer);
  });
}

function show(file) {
  const preview = of("#image img");
  URL.revokeObjectURL(preview.src);
  const mine = (current = file && fit(file));
  of("#image-note").textContent = "";
  mine?.then(({ from }) => {
    if (from && current === mine) of("#image-note").textContent = `A smaller copy is sent: this image has ${from}.`;
  });
  of("#image-file").value = "";
  of("#image").classList.toggle("full", Boolean(file));
  of("#image .no-preview").hidden = true;
  of("#remove").hidden = preview.hidden = !file;
  of("#image-name").textContent = file ? file.name : "";
  preview.alt = file ? `The image to caption: ${file.name}` : "";
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
  changed();
}

function addExample(button) {
  const name = button.dataset.example;
  const url = new URL(`../examples/${name}`, import.meta.url);
  button.append(Object.assign(new Image(), { src: url, alt: "" }));
  button.addEventListener("click", async () => show(new File([await (await fetch(url)).blob()], name)));
}

function watchCamera() {
  const [shot, video] = [of("#shot"), of("#shot video")];
  if (!navigator.mediaDevices?.getUserMedia) return; // browsers offer it only on localhost and over HTTPS
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
      of("#image-name").textContent = "No camera is available.";
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
