import pytest

from pathex.cli.console import RunDisplay


def feed(screen, epochs):
    display = screen.of("px")
    display("prune_round", {"round": 1, "rounds": 2, "density": 0.5})
    display("prune_done", {"seconds": 0.5, "kept": 10, "total": 1000})
    for epoch in range(1, epochs + 1):
        display("step", {"epoch": epoch, "epochs": epochs, "step": 1, "steps": 2})
        row = {"epoch": epoch, "epochs": epochs, "train_loss": 0.5, "train_accuracy": 0.75, "lr": 0.1}
        display("epoch", row)
    display("something new", {})


@pytest.mark.parametrize(("epochs", "lines"), [(1, 1), (3, 3), (10, 10), (11, 7), (160, 11)])
def test_without_a_terminal_there_are_a_few_short_lines(capsys, epochs, lines):
    with RunDisplay() as display:
        feed(display, epochs)
    out, err = capsys.readouterr()
    assert out == "" and "\x1b" not in err and "━" not in err
    assert err.count("px: epoch") == lines
    assert err.splitlines()[-1] == f"px: epoch {epochs} of {epochs}: loss 0.500, accuracy 75.0 %"


def test_on_a_terminal_bars_vanish_and_facts_stay(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with RunDisplay() as display:
        feed(display, 3)
    err = capsys.readouterr().err
    assert "px: kept 10 of 1,000 weights in 0.5 s" in err
    assert "px: epoch" not in err
    assert err.rstrip().endswith(("\x1b[2K", "\x1b[?25h")), "the last thing written clears the bar"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"stage": "done"}, "px: done before"),
        ({"stage": "pruned"}, "px: resumed with the mask of before"),
        ({"stage": "training", "epoch": 4, "epochs": 9}, "px: resumed after epoch 4"),
        ({"stage": "training", "epoch": 4, "epochs": 9, "task": 2}, "px: resumed after epoch 4 of task 2"),
        ({"stage": "training", "epoch": 4, "level": 1, "levels": 5}, "px: resumed after epoch 4 of level 1 of 5"),
        ({"stage": "level", "level": 1, "levels": 5}, "px: level 1 of 5 was done before"),
    ],
)
def test_resuming_is_told(capsys, payload, said):
    with RunDisplay() as screen:
        screen.show("px", "resumed", payload)
    assert capsys.readouterr().err.strip() == said


def test_several_trainings_of_a_run_are_told_apart(capsys):
    with RunDisplay() as screen:
        display = screen.of("imp")
        for level in (1, 2):
            for epoch in (1, 2, 3):
                row = {"epoch": epoch, "epochs": 3, "train_loss": 0.5, "train_accuracy": 0.75}
                display("epoch", {**row, "level": level, "levels": 2})
            display("prune_round", {"round": level, "rounds": 2, "density": 0.5**level})
        display("epoch", {"epoch": 3, "epochs": 3, "train_loss": 0.25, "train_miou": 0.5, "task": 4})
        display("narrowed", {"width": 0.125, "parameters": 1234, "multiply_adds": 56789})
        display("narrowed", {"width": 3, "parameters": None, "multiply_adds": None})
        display("done", {"result": {"metric": "miou", "test_miou": 0.625}})
    assert capsys.readouterr().err.splitlines() == [
        "imp: level 1 of 2, epoch 3 of 3: loss 0.500, accuracy 75.0 %",
        "imp: level 2 of 2, epoch 3 of 3: loss 0.500, accuracy 75.0 %",
        "imp: task 4, epoch 3 of 3: loss 0.250, mIoU 50.0 %",
        "imp: dense with width 0.125: 1,234 parameters, 56,789 multiply-adds",
        "imp: dense with width 3",
        "imp: test mIoU 62.50 %",
    ]
