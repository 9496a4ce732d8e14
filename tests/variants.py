"""Every method, and some with options that make them compute another way: method and options by name."""

import pathex

LOSSES = ["snip", "iterative-snip", "force", "grasp", "iterative-grasp"]
KERNELS = {
    "ntk-sap": ("ntk-sap", {}),
    "ntk-sap exact": ("ntk-sap", {"exact": True}),
    "ntk-sap data": ("ntk-sap", {"inputs": "data"}),
    "ntk-diagonal": ("ntk-diagonal", {}),
    "ntk-diagonal projected": ("ntk-diagonal", {"projections": 3}),
    "fisher-diagonal": ("fisher-diagonal", {}),
    "fisher-diagonal projected": ("fisher-diagonal", {"projections": 3}),
    "fisher-diagonal model": ("fisher-diagonal", {"labels": "model"}),
}
SCORERS = [name for name in pathex.methods() if not pathex.methods(name).trains]
VARIANTS = {name: (name, {}) for name in SCORERS} | KERNELS
CALIBRATED = [name for name, (method, _) in VARIANTS.items() if "calibration" in pathex.methods(method).options]
RUN_THE_NETWORK = {*LOSSES, "prospr", "ntk-sap", "ntk-diagonal", "fisher-diagonal", "fisher-taylor"}
RUN_THE_NETWORK |= {"hutchinson-taylor"}
