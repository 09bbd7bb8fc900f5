"""The two kinds of classifier, saved and loaded the way of the transformers library."""

from penstock.engine.models.build import build_model, load_model
from penstock.engine.models.encoder import EncoderClassifier
from penstock.engine.models.lstm import LSTMClassifier, LSTMClassifierConfig
from penstock.engine.models.settings import ModelSettings

__all__ = ["EncoderClassifier", "LSTMClassifier", "LSTMClassifierConfig", "ModelSettings", "build_model", "load_model"]
