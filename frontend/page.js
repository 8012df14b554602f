// What Gradio leaves out: pasting anywhere, files whose type the browser does not know (the server says what it cannot
// read), a word in place of a preview that cannot be shown, and names for those who hear the page.
(() => {
  const input = () => document.querySelector("#image input[type=file]");
  const isImage = (file) => file.type.startsWith("image/");

  function hand(file) {
    const files = new DataTransfer();
    files.items.add(isImage(file) ? file : new File([file], file.name, { type: "image/unknown" }));
    input().files = files.files;
    input().dispatchEvent(new Event("change", { bubbles: true }));
  }

  document.addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file) {
      event.preventDefault();
      hand(file);
    }
  });

  document.addEventListener("change", (event) => {
    const file = event.target === input() && event.target.files[0];
    if (file && !isImage(file)) {
      event.stopImmediatePropagation();
      hand(file);
    }
  }, true);

  document.addEventListener("drop", (event) => {
    const file = event.dataTransfer.files[0];
    if (file && !isImage(file) && event.target.closest("#image")) {
      event.preventDefault();
      event.stopImmediatePropagation();
      event.target.dispatchEvent(new DragEvent("dragleave", { bubbles: true }));
      hand(file);
    }
  }, true);

  for (const [name, unseen] of [["error", true], ["load", false]]) {
    document.addEventListener(name, (event) => {
      if (event.target.matches?.("#image img")) {
        document.querySelector("#image").classList.toggle("unseen", unseen);
      } else if (event.target.matches?.(".gallery-item img")) {
        event.target.alt = `Example ${event.target.src.split("/").pop()}`;
      }
    }, true);
  }

  const naming = new MutationObserver(() => {
    const caption = document.querySelector("#caption textarea");
    if (caption) {
      caption.ariaLabel = "Caption";
      naming.disconnect();
    }
  });
  naming.observe(document, { childList: true, subtree: true });
})();
