import pytest

from penstock.engine.training.progress import LiveDisplay, PlainDisplay, open_display

STEP = {
    "step": 20,
    "epoch": 0.5,
    "loss": 0.61234,
    "learning_rate": 1e-3,
    "tokens_per_second": 45678.0,
    "examples_per_second": 321.0,
    "data_wait": 0.004,
    "mfu": 0.41,
}
EVALUATION = {
    "split": "validation",
    "step": 20,
    "accuracy": 0.8,
    "macro_f1": 0.75,
    "loss": 0.5,
    "num_examples": 1000,
    "best": True,
}
STEP_TEXT = "step 20  epoch 0.5  loss 0.6123  lr 1.00e-03  45,678 tokens/s  321 examples/s  data wait 0.4%  MFU 41.0%"
EVALUATION_TEXT = "validation at step 20: accuracy 0.8000  macro-F1 0.7500  loss 0.5000  (1,000 examples)  best"


def test_plain_lines(capsys):
    display = PlainDisplay(interval=0.0)
    display.step(STEP, 0.25)
    display.evaluation(EVALUATION)
    display.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f" 25%  {STEP_TEXT}  -:-- left", EVALUATION_TEXT]


def test_lines_are_rare(capsys):
    display = PlainDisplay(interval=1000.0)
    for done in (0.1, 0.2):
        display.step(STEP, done)
    assert capsys.readouterr().err == ""


def test_the_time_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("penstock.engine.training.progress.time.monotonic", lambda: now[0])
    display = PlainDisplay(interval=0.0)
    display.step(STEP, 0.5)  # a resumed run
    now[0] += 3600
    display.step(STEP, 0.75)
    now[0] += 1755
    display.step(STEP, 0.99)
    assert [line.split()[-2] for line in capsys.readouterr().err.splitlines()] == ["-:--", "1:00:00", "1:49"]


def test_live(capsys):
    display = LiveDisplay()
    display.step(STEP, 0.25)
    display.evaluation(EVALUATION)
    display.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "accuracy 0.8000" in err


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_without_a_terminal(mode, capsys):
    display = open_display(mode)
    display.step(STEP, 0.5)
    display.close()
    assert capsys.readouterr() == ("", "")
