"""What a chart of Altair says, layer by layer."""

import re
from types import SimpleNamespace
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def layers(chart, mark=None):
    """The layers of a chart, or those of one kind of mark, from the one at the back on."""
    spec = chart.to_dict()
    found = [
        SimpleNamespace(
            mark=layer["mark"]["type"],
            how=layer["mark"],
            channels=layer["encoding"],
            rows=spec["datasets"][layer["data"]["name"]],
        )
        for layer in spec["layer"]
    ]
    return [layer for layer in found if mark in {None, layer.mark}]


def legend(chart):
    """The names in the legend."""
    [names] = {tuple(at["values"]) for layer in layers(chart) if (at := layer.channels.get("shape", {}).get("legend"))}
    return list(names)


def channel(chart, name):
    """The first definition of a channel."""
    return next(layer.channels[name] for layer in layers(chart) if "field" in layer.channels.get(name, {}))


def texts(svg, role):
    """The texts of a role that can be seen in a picture, each with its place along the way."""
    groups = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if f"role-{role}" in g.get("class", "")]
    seen = [text for group in groups for text in group.iter(f"{SVG}text") if text.get("opacity", "1") != "0"]
    return [(text.text, float(re.match(r"translate\(([-.\d]+)", text.get("transform"))[1])) for text in seen]
