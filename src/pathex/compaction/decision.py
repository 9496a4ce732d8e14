"""Which channels can go: those that are constant, or that nothing kept reads, wherever they are tied."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pathex.compaction.channels import Channels, Reader
from pathex.graph import Node


@dataclass
class Decision:
    """What goes, and what takes its place.

    Attributes:
        removed: For each label whether its place goes.
        weights: Masked weights with constants merged, in float64 and in the sizes before.
        mask: What is left of the mask, in the sizes before.
        shifts: What is added to the bias of a module.
        reasons: For each label that was pinned, or read as a constant, why.
    """

    removed: Tensor
    weights: dict[str, Tensor] = field(default_factory=dict)
    mask: dict[str, Tensor] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


def decide(of: Channels) -> Decision:
    """Find what can go, and fold the constants that went into what reads them."""
    return Deciding(of).decision()


class Deciding:
    """Classes of labels that go together: those ``seen`` in the network, and of them those that have to stay."""

    def __init__(self, of: Channels) -> None:
        self.of = of
        self.classes = of.labels.roots().unique(return_inverse=True)[1]
        count = int(self.classes.max()) + 1
        self.stays, self.seen = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        self.stays[0] = True
        self.reasons: dict[int, str] = {}
        self.reads: dict[Node, Tensor] = {}
        self.rows: dict[Node, Tensor] = {}
        used = {source for node in of.graph.nodes for source in node.inputs}
        self.outputs = {node for node in of.graph.nodes if node not in used or node is of.graph.output}

    def fix(self) -> None:
        """Find what is seen, and keep outputs and what is pinned."""
        for node in self.of.graph.nodes:
            own = self.members(*(part.ids for part in self.of.parts(node)))
            self.seen |= own
            if node in self.outputs:
                self._keep(own, "an output of the network")
        for labels, reason in self.of.labels.pins:
            self._keep(self.members(labels), reason)

    def decision(self) -> Decision:
        """What goes of a masked network."""
        self.fix()
        self._walk()
        mask = dict(self.of.mask) | {reader.weight: self.of.kept(reader.weight) for reader in self.of.readers}
        mask = {name: kept.clone(memory_format=torch.contiguous_format) for name, kept in mask.items()}
        weights = {name: (self.of.tensors[name].double() * kept).contiguous() for name, kept in mask.items()}
        found = Decision(self.stays, weights, mask)
        active = {reader.weight: torch.zeros_like(mask[reader.weight]) for reader in self.of.readers}
        for reader in self.of.readers:
            if reader.bias is None:
                reader.by_unit(active[reader.weight])[:] |= self._kept_constants(reader, found).unsqueeze(3)
        self._keep_some()
        for reader in self.of.readers:
            if reader.bias is not None:
                reader.by_unit(active[reader.weight])[:] |= self._folded_constants(reader, found).unsqueeze(3)
        for name, entries in active.items():
            mask[name] &= entries
            weights[name] *= mask[name]
        found.removed = (self.seen & ~self.stays)[self.classes]
        reasons = map(self.reasons.get, self.classes.tolist())
        found.reasons = {label: reason for label, reason in enumerate(reasons) if reason is not None}
        return found

    def members(self, *labels: Tensor) -> Tensor:
        """The classes of labels, as flags."""
        found = torch.zeros_like(self.stays)
        for each in labels:
            found[self.classes[each]] = True
        return found

    def _keep(self, members: Tensor, reason: str) -> None:
        self.stays |= members
        for kind in members.nonzero().flatten().tolist():
            self.reasons.setdefault(kind, reason)

    def _walk(self) -> None:
        """From the outputs back: what is read, through kept weights, and depends on the input."""
        readers = {reader.node: reader for reader in self.of.readers}
        for node in reversed(self.of.graph.nodes):
            parts = self.of.parts(node)
            own = self.members(*(part.ids for part in parts))
            read = own if node in self.outputs else self.reads.pop(node, torch.zeros_like(own))
            read &= self.members(*(part.ids[part.unknown_of] for part in parts))
            self.stays |= read
            if not read.any() and (parts or node not in self.of.graph.dependent):
                continue  # of several results without a rule nothing is known: all that reaches them is read
            if node in readers:
                self._read_columns(readers[node], read)
            for source in node.inputs:
                if node not in readers or source is not node.args[0]:
                    self._read(source, read, own, node.op == "getitem")

    def _read(self, source: Node, read: Tensor, own: Tensor, part: bool = False) -> None:
        """What of a value is read where a result is, one that may not have all of its channels."""
        found = self.members(*(each.ids for each in self.of.parts(source))) & (read if part else read | ~own)
        self.reads[source] = self.reads.get(source, torch.zeros_like(found)) | found

    def _read_columns(self, reader: Reader, read: Tensor) -> None:
        self.rows[reader.node] = rows = read[self.classes[reader.rows]]
        needed = self._needed(reader, rows)
        if needed.any():
            self._read(reader.node.args[0], self.members(reader.columns[needed]), self.members(reader.columns))

    def _needed(self, reader: Reader, rows: Tensor) -> Tensor:
        """The columns that kept weights of some rows read."""
        return (reader.by_unit(self.of.kept(reader.weight)).any(3) & rows.view(reader.groups, -1, 1)).any(1).flatten()

    # -- constants -----------------------------------------------------------------------------------------------------

    def _rows(self, reader: Reader) -> Tensor:
        """The outputs of a layer that are read, by group."""
        none = torch.zeros(len(reader.rows), dtype=torch.bool)
        return self.rows.get(reader.node, none).view(reader.groups, -1, 1)

    def _kept_constants(self, reader: Reader, found: Decision) -> Tensor:
        """Merge the constants that a layer without a bias for them reads; by unit, the weights that carry something."""
        rows = self._rows(reader)
        read = ~reader.unknown & (reader.number != 0) & self._needed(reader, rows)
        if reader.groups == 1 and self.of.uses[reader.weight] == 1 and read.sum() > 1:
            read = self._merge(reader, read, found)
        self._keep(self.members(reader.columns[read]), f"its constant is read by {reader.weight}")
        return rows & (reader.unknown | read).view(reader.groups, 1, -1)

    def _folded_constants(self, reader: Reader, found: Decision) -> Tensor:
        """Fold the constants that a layer reads into its bias, into a new one only if channels go."""
        numbers = reader.number.view(reader.groups, 1, -1)
        shift = (reader.by_unit(found.weights[reader.weight]).sum(3) * numbers).sum(2).flatten()
        goes = (self.seen & ~self.stays)[self.classes[reader.columns]] & (reader.number != 0)
        live = self._rows(reader) & reader.unknown.view(reader.groups, 1, -1)
        if reader.node["bias"] is None and not goes.any():
            return live | (numbers != 0)
        if shift.any():
            found.shifts[reader.bias or ""] = shift
        return live

    def _merge(self, reader: Reader, read: Tensor, found: Decision) -> Tensor:
        """Let one constant channel stand for all that are read, as behind zero padding their sum is a map."""
        size = reader.number.abs() * ~reader.unknown
        kept = size * self.stays[self.classes[reader.columns]]
        largest = kept if kept.max() >= 1e-3 * size.max() else size * read
        chosen = int(largest.argmax())
        weight, mask = (reader.by_unit(each[reader.weight])[0] for each in (found.weights, found.mask))
        shares = (reader.number / reader.number[chosen])[read].view(1, -1, 1)
        weight[:, chosen] = (weight[:, read] * shares).sum(1)
        mask[:, chosen] = mask[:, read].any(1)
        return torch.arange(len(read)) == chosen

    def _keep_some(self) -> None:
        """A place at least along each dimension."""
        gone, before = self.seen & ~self.stays, None
        while before is None or not torch.equal(gone, before):
            before = gone
            for labels in self.of.labels.places.values():
                if gone[self.classes[labels]].all():
                    self._keep(self.members(labels[:1]), "a layer has one channel at least")
                    gone = self.seen & ~self.stays
