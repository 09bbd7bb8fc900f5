"""The `model` section of the configuration."""

from dataclasses import dataclass, fields

from penstock.engine.errors import ConfigError

KINDS = ("lstm", "encoder")
POOLINGS = ("max", "mean", "last", "attention")
EMBEDDINGS = ("scratch", "encoder")

# lstm-LAYERS-HIDDEN; the last two are those of Wang, Khabsa & Ma (ACL 2020).
PRESETS = {
    "lstm-1-256": {"num_layers": 1, "hidden_size": 256},
    "lstm-4-256": {"num_layers": 4, "hidden_size": 256},
    "lstm-4-512": {"num_layers": 4, "hidden_size": 512},
}
DEFAULT_PRESET = "lstm-1-256"


@dataclass(frozen=True)
class ModelSettings:
    """What model to build. Sizes that a preset fixes, and that are left None, are filled in on construction.

    Attributes:
        kind: "lstm" (from scratch) or "encoder" (a pretrained transformers encoder, fine-tuned).
        preset: "lstm-1-256" (the default sizes), "lstm-4-256" or "lstm-4-512": an LSTM's layers and hidden size.
        num_layers, hidden_size: of an LSTM, the hidden size counted per direction.
        bidirectional: whether the LSTM also reads from the end.
        embedding_size: of an LSTM's token embeddings; None is 256, or the encoder's if they are taken from one.
        embeddings: "scratch", or "encoder" to start an LSTM from the token embeddings of the model `encoder`.
        freeze_embeddings: leave the token embeddings as they are.
        pooling: how an LSTM's outputs become one vector: "max", "mean", "last" (the forward direction's last token and
            the reverse direction's first) or "attention".
        embedding_dropout, dropout, head_dropout: of an LSTM: on the embeddings, between layers, before the classifier.
        encoder: a model's name on the Hugging Face hub or the path of its folder.
        encoder_dropout, encoder_attention_dropout, encoder_head_dropout: of an encoder: on hidden states, on attention
            weights, before the classifier; None keeps what the checkpoint's configuration says.
        gradient_checkpointing: recompute an encoder's layers in backward, trading time for memory.
        freeze_layers: of an encoder: leave this many of its lowest layers, and its embeddings, as they are.
        lora_rank: of an encoder: train low-rank adapters of this rank (through peft) and the head; None trains it all.
        lora_alpha, lora_dropout: of the adapters; None is twice the rank, and no dropout.
        lora_targets: which linear layers get adapters: "all" (the default), "attention", or their names, separated by
            commas.

    Raises:
        ConfigError: a value is wrong or two of them contradict each other.
    """

    kind: str = "lstm"
    preset: str | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    bidirectional: bool = True
    embedding_size: int | None = None
    embeddings: str = "scratch"
    freeze_embeddings: bool = False
    pooling: str = "max"
    embedding_dropout: float = 0.0
    dropout: float = 0.1
    head_dropout: float = 0.1
    encoder: str | None = None
    encoder_dropout: float | None = None
    encoder_attention_dropout: float | None = None
    encoder_head_dropout: float | None = None
    gradient_checkpointing: bool = False
    freeze_layers: int | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float | None = None
    lora_targets: str | None = None

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, KINDS)
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_choice("embeddings", self.embeddings, EMBEDDINGS)
        if self.preset is not None:
            _check_choice("preset", self.preset, tuple(PRESETS))
        for name, value in PRESETS[self.preset or DEFAULT_PRESET].items():
            given = getattr(self, name)
            if given is None:
                object.__setattr__(self, name, value)
            elif self.preset is not None and given != value:
                raise ConfigError(
                    f"model.{name}={given} contradicts model.preset={self.preset}, which is {value}; leave one out"
                )
        if self.embedding_size is None and self.embeddings == "scratch":
            object.__setattr__(self, "embedding_size", 256)
        for name in ("num_layers", "hidden_size", "embedding_size", "freeze_layers", "lora_rank"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"model.{name} must be a positive integer, got {value!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if not field.name.endswith("dropout") or value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ConfigError(f"model.{field.name} must lie in [0, 1), got {value!r}")
        for name in ("bidirectional", "freeze_embeddings", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"model.{name} must be true or false, got {getattr(self, name)!r}")
        self._check_adaptation()
        if self.encoder is None and (self.kind == "encoder" or self.embeddings == "encoder"):
            need = "model.kind=encoder" if self.kind == "encoder" else "model.embeddings=encoder"
            raise ConfigError(f"{need} needs model.encoder: a model's name on the hub or the path of its folder")
        if self.kind == "lstm" and self.freeze_embeddings and self.embeddings == "scratch":
            raise ConfigError("model.freeze_embeddings=true would keep random embeddings; set model.embeddings=encoder")

    def _check_adaptation(self) -> None:
        """Of what parts of an encoder are trained, and how."""
        lora = [name for name in ("lora_alpha", "lora_dropout", "lora_targets") if getattr(self, name) is not None]
        for name in ("freeze_layers", "lora_rank", *lora):
            if self.kind != "encoder" and getattr(self, name) is not None:
                raise ConfigError(f"model.{name} is for encoders; leave it out, or set model.kind=encoder")
        if lora and self.lora_rank is None:
            raise ConfigError(f"model.{lora[0]} needs model.lora_rank, such as 8")
        alpha = self.lora_alpha
        if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0):
            raise ConfigError(f"model.lora_alpha must be positive, got {alpha!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"model.{name} must be one of {', '.join(choices)}, got {value!r}")
