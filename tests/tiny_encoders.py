"""Small random encoders of every supported architecture."""

import torch
import transformers
from transformers import PreTrainedModel

VOCAB, LABELS, POSITIONS = 101, 3, 40
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,  # large enough that attention is far from uniform
    "num_labels": LABELS,
    "pad_token_id": 1,
}
DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "num_labels": LABELS,
}
# The first and the last layer are global, those between see two tokens to either side.
MODERNBERT = {
    **BERT,
    "num_hidden_layers": 4,
    "global_attn_every_n_layers": 3,
    "local_attention": 4,
    "pad_token_id": 0,
    "attention_dropout": 0.1,
    "mlp_dropout": 0.1,
}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**{**BERT, "pad_token_id": 0}),
    "roberta": lambda: transformers.RobertaConfig(**BERT),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**BERT),
    "camembert": lambda: transformers.CamembertConfig(**BERT),
    "electra": lambda: transformers.ElectraConfig(**{**BERT, "embedding_size": 24}),
    "distilbert": lambda: transformers.DistilBertConfig(**DISTILBERT),
    "modernbert": lambda: transformers.ModernBertConfig(**MODERNBERT),
    "modernbert-biases-yarn": lambda: transformers.ModernBertConfig(
        **MODERNBERT,
        attention_bias=True,
        mlp_bias=True,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ),
    "modernbert-local": lambda: transformers.ModernBertConfig(**{**MODERNBERT, "num_hidden_layers": 3}),
    "modernbert-mean": lambda: transformers.ModernBertConfig(**MODERNBERT, classifier_pooling="mean"),
}


def stock_model(name: str, **changes: object) -> PreTrainedModel:
    """A stock model with padded eager attention, in evaluation mode."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    for key, value in changes.items():
        assert hasattr(config, key), key
        setattr(config, key, value)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1, where mistakes hide
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()
