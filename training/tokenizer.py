"""The captioner's own vocabulary: byte-level BPE learnt from the training captions, control tokens for its forms."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from captioner.embedded import BOS, EOS, FORMS, PAD, Form

VOCABULARY = 4096


class CaptionTokenizer:
    """A tokenizer with the ids that training needs by name."""

    def __init__(self, fast: PreTrainedTokenizerFast) -> None:
        self.fast = fast
        ids: dict[str, int] = fast.get_vocab()
        self.bos, self.eos, self.pad = ids[BOS], ids[EOS], ids[PAD]
        self.forms: dict[Form, int] = {form: ids[token] for form, token in FORMS.items()}

    @classmethod
    def learn(cls, texts: Iterable[str], vocabulary: int = VOCABULARY) -> CaptionTokenizer:
        """Merges the most frequent pairs of `texts` until there are `vocabulary` tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
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
        """What stands in front of a caption."""
        return [self.bos] if form is None else [self.bos, self.forms[form]]

    def sequence(self, text: str, form: Form | None) -> list[int]:
        """A whole caption as it is trained: prompt, text, end."""
        return [*self.prompt(form), *self.fast.encode(text), self.eos]

    def decode(self, ids: list[int]) -> str:
        """Plain text, up to the first end."""
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        text = self.fast.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text
