"""What a metric is called in figures and tables. In files every metric is a fraction, for people it is a percentage."""

__all__ = ["metric_label", "metric_name"]

_NAMES = {"accuracy": "accuracy", "miou": "mean IoU"}


def metric_name(metric: str) -> str:
    """The metric in words."""
    return _NAMES.get(metric, metric)


def metric_label(metric: str) -> str:
    """What heads a column or an axis of the metric on the test images."""
    return "mean IoU" if metric == "miou" else f"test {metric_name(metric)}"
