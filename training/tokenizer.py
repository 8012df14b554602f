"""The captioner's tokenizer: byte-level BPE trained on the captions, with one control token for each form."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from captioner.embedded import BOS, EOS, FORMS, PAD, Form

VOCABULARY_SIZE = 4096


class CaptionTokenizer:
    """A Hugging Face tokenizer with its special ids as attributes."""

    def __init__(self, fast: PreTrainedTokenizerFast) -> None:
        self.fast = fast
        ids: dict[str, int] = fast.get_vocab()
        self.bos, self.eos, self.pad = ids[BOS], ids[EOS], ids[PAD]
        self.forms: dict[Form, int] = {form: ids[token] for form, token in FORMS.items()}

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> CaptionTokenizer:
        """Return a tokenizer of `vocabulary_size` tokens, trained on `texts`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[PAD, BOS, EOS, *FORMS.values()],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer,
                bos_token=BOS,
                eos_token=EOS,
                pad_token=PAD,
                extra_special_tokens=list(FORMS.values()),
                clean_up_tokenization_spaces=False,
                model_max_length=96,
            )
        )

    def __len__(self) -> int:
        return len(self.fast)

    def prompt(self, form: Form | None) -> list[int]:
        """Return the ids in front of a caption: BOS and the form's token."""
        return [self.bos] if form is None else [self.bos, self.forms[form]]

    def encode(self, text: str, form: Form | None) -> list[int]:
        """Return the ids of a training sequence: prompt, text, EOS."""
        return [*self.prompt(form), *self.fast.encode(text), self.eos]

    def decode(self, ids: list[int]) -> str:
        """Return the text up to the first EOS, without special tokens."""
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        text = self.fast.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text
