"""The `model` section of the configuration."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from penstock.engine.errors import ConfigError
from penstock.engine.setting import check_section, setting

# lstm-LAYERS-HIDDEN; the last two are those of Wang, Khabsa & Ma (ACL 2020).
PRESETS = {
    "lstm-1-256": {"num_layers": 1, "hidden_size": 256},
    "lstm-4-256": {"num_layers": 4, "hidden_size": 256},
    "lstm-4-512": {"num_layers": 4, "hidden_size": 512},
}
DEFAULT_PRESET = "lstm-1-256"

# how messages name the kinds, and what asks for each
_NAMED = {"lstm": "an lstm", "encoder": "an encoder", "bag": "a bag"}
_ASKED_FOR = {
    "lstm": "model.kind=lstm",
    "encoder": "model.kind=encoder and model.encoder",
    "bag": "model.kind=bag",
}
_MATRIX_KINDS = ("lstm", "encoder")


@dataclass(frozen=True)
class ModelSettings:
    """What model to build. The kind and the sizes that are left None are filled in on construction.

    An `lstm` is trained from scratch, an `encoder` is a pretrained transformers encoder, fine-tuned, a `bag` is a
    linear model of hashed n-grams of tokens.

    Raises:
        ConfigError: a value is wrong or two of them contradict each other.
    """

    kind: Literal["lstm", "encoder", "bag"] | None = setting(
        None, "null: encoder where model.encoder is set, unless model.embeddings takes it"
    )
    preset: Literal["lstm-1-256", "lstm-4-256", "lstm-4-512"] | None = setting(
        None, "num_layers and hidden_size by name; null is lstm-1-256", used_by="lstm"
    )
    num_layers: int | None = setting(None, "LSTM layers; null: by preset", minimum=1, used_by="lstm")
    hidden_size: int | None = setting(None, "LSTM units per direction; null: by preset", minimum=1, used_by="lstm")
    bidirectional: bool = setting(True, "the LSTM also reads from the end", used_by="lstm")
    embedding_size: int | None = setting(
        None,
        "of token embeddings; null: 256, or the encoder's if taken from one; bag: by the recipe",
        minimum=1,
        used_by=("lstm", "bag"),
    )
    ngrams: int = setting(
        2, "tokens of a bag's longest n-gram; the shorter ones count too", minimum=1, maximum=8, used_by="bag"
    )
    buckets: int | None = setting(
        None,
        "embeddings that a bag's n-grams of two tokens and more share by their hash; null: by the recipe",
        minimum=1,
        maximum=1 << 30,
        used_by="bag",
    )
    embeddings: Literal["scratch", "encoder"] = setting(
        "scratch", "encoder: an LSTM starts from the token embeddings of model.encoder", used_by="lstm"
    )
    freeze_embeddings: bool = setting(False, "leave the token embeddings as they are", used_by=_MATRIX_KINDS)
    pooling: Literal["max", "mean", "last", "attention"] = setting(
        "max", "how an LSTM's outputs become one vector; last: of each direction", used_by="lstm"
    )
    embedding_dropout: float = setting(0.0, "on an LSTM's embeddings", minimum=0, below=1, used_by="lstm")
    dropout: float = setting(0.1, "between an LSTM's layers", minimum=0, below=1, used_by="lstm")
    head_dropout: float = setting(0.1, "before an LSTM's classifier", minimum=0, below=1, used_by="lstm")
    encoder: str | None = setting(
        None, "a pretrained model's name on the Hugging Face hub or the path of its folder", used_by=_MATRIX_KINDS
    )
    encoder_dropout: float | None = setting(
        None, "on an encoder's hidden states; null: as its checkpoint says", minimum=0, below=1, used_by="encoder"
    )
    encoder_attention_dropout: float | None = setting(
        None, "on an encoder's attention weights; null: as its checkpoint says", minimum=0, below=1, used_by="encoder"
    )
    encoder_head_dropout: float | None = setting(
        None, "before an encoder's classifier; null: as its checkpoint says", minimum=0, below=1, used_by="encoder"
    )
    gradient_checkpointing: bool = setting(
        False, "recompute an encoder's layers in backward, trading time for memory", used_by="encoder"
    )
    start_from: str | None = setting(None, "an earlier run, whose best model's weights this one starts from (--from)")
    freeze_layers: int | None = setting(
        None,
        "leave this many of an encoder's lowest layers, and its embeddings, as they are",
        minimum=1,
        used_by="encoder",
    )
    lora_rank: int | None = setting(
        None, "train low-rank adapters of this rank and the head alone (needs peft)", minimum=1, used_by="encoder"
    )
    lora_alpha: float | None = setting(
        None, "scale of the adapters; null: twice the rank", minimum=1e-6, used_by="encoder"
    )
    lora_dropout: float | None = setting(None, "before the adapters; null: none", minimum=0, below=1, used_by="encoder")
    lora_targets: str | None = setting(
        None, "what gets adapters: all linear layers (null), attention, or names such as query,value", used_by="encoder"
    )

    def __post_init__(self) -> None:
        check_section(self, "model")
        if self.kind is None:
            takes_encoder = self.encoder is not None and self.embeddings == "scratch"
            object.__setattr__(self, "kind", "encoder" if takes_encoder else "lstm")
        for name, value in {} if self.kind == "bag" else PRESETS[self.preset or DEFAULT_PRESET].items():
            given = getattr(self, name)
            if given is None:
                object.__setattr__(self, name, value)
            elif self.preset is not None and given != value:
                raise ConfigError(
                    f"model.{name}={given} contradicts model.preset={self.preset}, which is {value}; leave one out"
                )
        if self.lora_targets is not None and not self.lora_targets.replace(",", "").strip():
            raise ConfigError(
                f"model.lora_targets={self.lora_targets!r} names no layers: give all, attention, or names such as "
                "query,value"
            )
        if self.embedding_size is None and self.embeddings == "scratch" and self.kind != "bag":
            object.__setattr__(self, "embedding_size", 256)
        needs_encoder = self.kind == "encoder" or (self.kind == "lstm" and self.embeddings == "encoder")
        if needs_encoder and self.encoder is None and self.start_from is None:
            need = "model.kind=encoder" if self.kind == "encoder" else "model.embeddings=encoder"
            raise ConfigError(f"{need} needs model.encoder: a model's name on the hub or the path of its folder")
        if self.kind == "lstm" and self.freeze_embeddings and self.embeddings == "scratch" and not self.start_from:
            raise ConfigError("model.freeze_embeddings=true would keep random embeddings; set model.embeddings=encoder")

    def unused(self, key: str) -> str | None:
        """Why this model does not read a setting, and what would; None if it does.

        Args:
            key: a field's name.
        """
        value = getattr(self, key)
        if value is None:
            return None
        if not self.is_of(kinds := _USED_BY[key]):
            needs = " or ".join(_ASKED_FOR[kind] for kind in kinds)
            return f"this model is {self.named}, which does not use it: leave it out, or set {needs}"
        if key in ("lora_alpha", "lora_dropout", "lora_targets") and self.lora_rank is None:
            return "there are no adapters: set model.lora_rank, such as 8"
        if key == "buckets" and self.ngrams == 1:
            return "single tokens have embeddings of their own: set model.ngrams, such as 2"
        if self.kind != "lstm":
            return None
        if key == "encoder" and self.embeddings == "scratch":
            return "an lstm reads it for its embeddings alone: set model.embeddings=encoder, or model.kind=encoder"
        if key == "dropout" and self.num_layers == 1 and value > 0:
            return "it falls between layers, and this lstm has one: set model.num_layers, or model.head_dropout"
        return None

    @property
    def named(self) -> str:
        """The kind with its article, for messages."""
        return _NAMED[str(self.kind)]

    def is_of(self, kinds: tuple[str, ...]) -> bool:
        """Whether the model is of one of these kinds; none at all stand for every kind."""
        return not kinds or self.kind in kinds

    def describe(self) -> str:
        """In a few words."""
        if self.kind == "bag":
            hashed = f", longer than one in {self.buckets:,} buckets" if self.ngrams > 1 and self.buckets else ""
            return f"bag (n-grams up to {self.ngrams}{hashed}; {self.embedding_size} wide)"
        if self.kind == "encoder":
            return f"encoder {self.encoder}"
        layers = f"{self.num_layers} layer{'s' if self.num_layers != 1 else ''} of {self.hidden_size}"
        return f"{'BiLSTM' if self.bidirectional else 'LSTM'} ({layers})"


_USED_BY: dict[str, Any] = {entry.name: entry.metadata["used_by"] for entry in fields(ModelSettings)}
