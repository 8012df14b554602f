// The one image: dropped, pasted, chosen, photographed, an example, or the address of one, which the server fetches
// where its operator allows that. It leaves the browser only for a caption.

import { IMAGE_URLS } from "./messages.js";
import { fit } from "./shrink.js";

let current = null; // a promise of { file, from }, see shrink.js, or of { url }
let name = "";
let changed = () => {};
const of = (selector) => document.querySelector(selector);

export const image = () => current;
export const imageName = () => name;

export function watchImage(onChange) {
  changed = onChange;
  const input = of("#image-file");
  input.addEventListener("change", () => input.files[0] && show(input.files[0]));
  of("#remove").addEventListener("click", () => show(null));
  of("#image img").addEventListener("error", () => (of("#image .no-preview").hidden = !current));
  document.addEventListener("paste", (event) => {
    const inText = event.target.matches?.("textarea, input");
    if (of("#image").offsetParent && take(event.clipboardData, !inText)) event.preventDefault();
  });
  watchDrop(of("#image"), (data) => take(data, true));
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

// Shows the image of a drop or of the clipboard. Returns whether there is one.
function take(data, orAddress) {
  const [file] = data.files;
  if (file) show(file);
  else if (!orAddress) return false;
  else return showAddress((data.getData("text/uri-list") || data.getData("text/plain")).trim().split(/\r?\n/)[0]);
  return true;
}

function showAddress(address) {
  if (/^data:image\//i.test(address) || address.startsWith(`${location.origin}/`)) fetchHere(address);
  else if (!/^https?:\/\/\S+$/i.test(address)) return false;
  else {
    show(null);
    if (IMAGE_URLS) {
      current = Promise.resolve({ url: address });
      name = lastOf(address);
      of("#remove").hidden = false;
      of("#image-name").textContent = address;
    }
    of("#image-note").textContent = IMAGE_URLS
      ? "The server fetches this image when you ask for a caption."
      : "This server does not fetch images from other sites. Save the image, and drop the file here.";
  }
  return true;
}

async function fetchHere(address) {
  const file = await (await fetch(address)).blob();
  if (file.type.startsWith("image/")) show(new File([file], address.startsWith("data:") ? "image" : lastOf(address)));
}

const lastOf = (address) => new URL(address).pathname.split("/").pop();

function show(file) {
  const preview = of("#image img");
  URL.revokeObjectURL(preview.src);
  const mine = (current = file && fit(file));
  name = file?.name ?? "";
  of("#image-note").textContent = "";
  mine?.then(({ from }) => {
    if (from && current === mine) of("#image-note").textContent = `A smaller copy is sent: this image has ${from}.`;
  });
  of("#image-file").value = "";
  of("#image").classList.toggle("full", Boolean(file));
  of("#image .no-preview").hidden = true;
  of("#remove").hidden = preview.hidden = !file;
  of("#image-name").textContent = name;
  preview.alt = file ? `The image to caption: ${name}` : "";
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
  changed();
}

function addExample(button) {
  const { example } = button.dataset;
  const url = new URL(`../examples/${example}`, import.meta.url);
  button.append(Object.assign(new Image(), { src: url, alt: "" }));
  button.addEventListener("click", async () => show(new File([await (await fetch(url)).blob()], example)));
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
