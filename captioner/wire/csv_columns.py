"""The columns of captions.csv, as bulk jobs and the page write it: the file, the caption, and fields of `Details`."""

CSV_COLUMNS = ("file", "caption", "model", "revision", "confidence", "unsure", "finish_reason")
