"""The ways to run a decode step that :mod:`specdecodes.benchmark.step` compares, and the models that it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from specdecodes.benchmark.shapes import shape_named
from specdecodes.core.tree import Tree
from specdecodes.models.families import signature_of
from specdecodes.models.loading import load_model
from specdecodes.models.target import Target


def heap(nodes: int, vocab: int, device: torch.device) -> tuple[Tree, Tensor]:
    """A binary heap of random tokens, and its leftmost path: int64 [1, D]."""
    parents = torch.tensor([[-1, *((node - 1) // 2 for node in range(1, nodes))]])
    return Tree(random_ids(vocab, nodes, device), parents.to(device)), torch.tensor([leftmost(nodes)], device=device)


def leftmost(nodes: int) -> list[int]:
    """The leftmost path of a binary heap of ``nodes`` nodes."""
    path = [0]
    while 2 * path[-1] + 1 < nodes:
        path.append(2 * path[-1] + 1)
    return path


def build_model(shape: str, layers: int | None, device: torch.device, dtype: Any) -> PreTrainedModel:  # noqa: ANN401
    """The embedded target with its weights, or a shape with random ones; only its first ``layers``, if that is given.

    Raises:
        ValueError: no such shape.
    """
    if shape == "embedded" and layers is None:
        return load_model("embedded", "target", device, dtype)
    config = shape_named(shape).config()
    if layers is not None:
        cut(config, layers)
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def random_ids(vocab: int, count: int, device: torch.device) -> Tensor:
    """int64 [1, count], the same ones every time."""
    return torch.randint(vocab, (1, count), generator=torch.Generator().manual_seed(count)).to(device)


def cut(config: Any, layers: int) -> None:  # noqa: ANN401 - configurations differ
    """Keep the first ``layers`` layers of a configuration."""
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    for name, values in vars(config).items():
        if name.startswith("attn_layer") and isinstance(values, list):  # the layers that attend, by index
            setattr(config, name, [index for index in values if index < layers])
        elif name == "layer_types" and values is not None:
            config.layer_types = list(values)[:layers]


class Way:
    """One way to run steps: a target, eager or compiled."""

    def __init__(self, name: str, model: PreTrainedModel, nodes: Sequence[int], context: int) -> None:
        self.name = name
        self.target = Target(model, compile=name == "compiled")
        self.target.hold_nodes(max(nodes))
        vocab, device = self.target.vocab_size, self.target.device
        self.trees = {count: heap(count, vocab, device) for count in nodes}
        self.root = heap(1, vocab, device)[0]
        self.prompt = random_ids(vocab, context, device)

    def restart(self) -> None:
        """Back to the prompt: the context has the same length in every measurement."""
        self.target.prefill(self.prompt)

    def plain(self) -> float:
        """Seconds of a step of plain decoding: score in place, the best token to the host, commit."""
        self.target.step_in_place = True
        took = sum(self._step(self.root, self.root.parents + 1))
        self.target.step_in_place = False
        return took

    def tree(self, nodes: int) -> tuple[float, float]:
        """Seconds of scoring a tree, its best tokens to the host, and of committing a path of it."""
        return self._step(*self.trees[nodes])

    def kept_bytes(self, nodes: int) -> float | None:
        """Bytes per node and recurrent layer that a scored tree keeps until its commit."""
        self.restart()
        self.target.score(self.trees[nodes][0])
        layers = sum(len(stack.layers) for stack in self.target.stacks)
        held = sum(each.nbytes for each in _tensors(self.target.kept))
        return held / nodes / layers if layers else None

    def _step(self, tree: Tree, path: Tensor) -> tuple[float, float]:
        score = seconds(lambda: self.target.score(tree).argmax(-1).tolist(), self.target.device)
        return score, seconds(lambda: self.target.commit(path), self.target.device)


class Stock:
    """One-token steps of stock transformers with its own cache, which grows by a token a round."""

    name = "stock"

    def __init__(self, model: PreTrainedModel, prompt: Tensor) -> None:
        self.model = model
        signature = signature_of(model)
        self.settings = {signature.cache_argument: DynamicCache(config=model.config), "use_cache": True}
        if signature.takes_logits_to_keep:
            self.settings["logits_to_keep"] = 1
        self.token = prompt[:, -1:]
        with torch.inference_mode():
            self._run(prompt)

    @torch.inference_mode()
    def plain(self) -> float:
        """Seconds of one step, the best token to the host."""
        return seconds(lambda: self._run(self.token), self.token.device)

    def _run(self, ids: Tensor) -> Any:  # noqa: ANN401
        return self.model(ids, **self.settings).logits[:, -1].argmax(-1).tolist()


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds of ``run``, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def weight_count(model: PreTrainedModel) -> tuple[int, int]:
    """Numbers in the weights that every step reads, and how many linear layers hold them.

    That is all but the input embedding, unless it makes the logits too.
    """
    total = sum(each.numel() for each in model.parameters())
    inputs, outputs = (
        cast(nn.Module, each).get_parameter("weight")
        for each in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    products = sum(isinstance(each, nn.Linear) for each in model.modules())
    return total if inputs is outputs else total - inputs.numel(), products


def _tensors(values: Any) -> Iterator[Tensor]:  # noqa: ANN401 - nested as the back-end likes
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors(each)
