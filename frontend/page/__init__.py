"""The Gradio page and the JavaScript that the browser runs."""
