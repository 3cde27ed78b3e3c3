"""Training steps as CUDA graphs: thousands of kernels that start with three calls.

A step of these networks has so many small kernels that the CPU which starts them is the limit: on
one H200 a step of 256 windows of 128 pixels took 164 ms with H-3 and 138 ms with H-4, which has
half the work, and 512 windows of H-3 190 ms (PyTorch 2.11). So forward pass, backward pass and the
optimiser's update are each recorded once, for every shape of images, and replayed. The losses
between, whose tensors have sizes that change with the people shown, are computed as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ehrnet_model.training.losses import Predicted, predict
from ehrnet_model.training.muon import Muon

_WARM_UP = 2


class Recorder(Protocol):
    """What makes calls that can be repeated of work on static memory."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Does the work now, so that nothing has to be made or loaded while it is recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A call that does the work again; what the work reads and writes stays where it is."""


class CudaRecorder:
    """CUDA graphs in one pool of memory: what is recorded in order must be replayed in order."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """On a stream of its own: what autograd remembers must not belong to the usual one."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records; nothing is computed. Raises RuntimeError for work that cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, which pin memory for windows, may go on.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


class Passes:
    """Forward and backward pass of a network in training mode for images of one shape.

    Args:
        network: on its device; every parameter has a gradient, whose memory stays.
        shape: of the images.
        bf16: see ``predict``.
        recorder: makes the graphs.
    """

    def __init__(
        self, network: nn.Module, shape: Sequence[int], bf16: bool, recorder: Recorder
    ) -> None:
        self._network, self._bf16 = network, bf16
        self._parameters = list(network.parameters())
        self._gradients = [parameter.grad for parameter in self._parameters]
        images = torch.zeros(tuple(shape), device=self._parameters[0].device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._predicted: Predicted
        self._wanted: list[Tensor]
        statistics = [buffer.clone() for buffer in network.buffers()]

        def once() -> None:
            self._run_forward()
            self._wanted = [torch.zeros_like(part) for part in self._predicted]
            self._run_backward()

        try:
            for _ in range(_WARM_UP):
                recorder.warm_up(once)
            self._replay_forward = recorder.record(self._run_forward)
            self._replay_backward = recorder.record(self._run_backward)
        finally:
            with torch.no_grad():
                for buffer, value in zip(network.buffers(), statistics, strict=True):
                    buffer.copy_(value)

    def forward(self, images: Tensor) -> Predicted:
        """What the network predicts, as leaves whose gradients ``backward`` takes.

        Their memory is used again by the next call.
        """
        self._images.copy_(images)
        self._replay_forward()
        return Predicted(*(part.detach().requires_grad_() for part in self._predicted))

    def backward(self, predicted: Predicted) -> None:
        """Writes the gradients of all parameters, from those of what ``forward`` gave."""
        for wanted, part in zip(self._wanted, predicted, strict=True):
            if part.grad is None:
                wanted.zero_()
            else:
                wanted.copy_(part.grad)
        self._replay_backward()

    def _run_forward(self) -> None:
        # Weights in bfloat16 belong to the graph, not to autocast's cache.
        self._predicted = predict(self._network, self._images, self._bf16, cache=False)

    def _run_backward(self) -> None:
        gradients = torch.autograd.grad(self._predicted, self._parameters, self._wanted)
        torch._foreach_copy_(self._gradients, list(gradients))
        # The memory is the graph's, its history would tie the next recording to this one.
        self._predicted = Predicted(*(part.detach() for part in self._predicted))


class Update:
    """The optimiser's step, with gradients and everything else where they are.

    Args:
        optimiser: of parameters that have gradients.
        recorder: makes the graph.
    """

    def __init__(self, optimiser: Muon, recorder: Recorder) -> None:
        self._optimiser = optimiser
        self._gradients = {p: p.grad for group in optimiser.param_groups for p in group["params"]}
        self._rate = torch.zeros((), device=next(iter(self._gradients)).device)
        kept = {p: p.detach().clone() for p in self._gradients}
        state = {p: {k: v.clone() for k, v in optimiser.state[p].items()} for p in kept}
        try:
            recorder.warm_up(self._run)
        finally:
            with torch.no_grad():
                for parameter, value in kept.items():
                    parameter.copy_(value)
                    for key, moment in optimiser.state[parameter].items():
                        before = state[parameter].get(key)
                        moment.zero_() if before is None else moment.copy_(before)
        self._replay = recorder.record(self._run)

    def step(self, rate: float) -> None:
        """One update at this learning rate."""
        self._rate.fill_(rate)
        self._replay()

    def _run(self) -> None:
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient  # the optimiser takes some away
        groups = self._optimiser.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"], group["capturable"] = self._rate, True
        try:
            self._optimiser.step()
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"], group["capturable"] = rate, False


class StepGraphs:
    """All passes of a run, and its updates.

    Args:
        network: in training mode, on its device. Its gradients' memory is made here and stays.
        optimiser: of all its parameters.
        shapes: of the images that will come.
        bf16: see ``predict``.
        recorder: makes a recorder for what is replayed together.

    Raises:
        RuntimeError: something cannot be recorded. Network and optimiser are as before.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: Muon,
        shapes: Sequence[Sequence[int]],
        bf16: bool,
        recorder: Callable[[], Recorder] = CudaRecorder,
    ) -> None:
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        try:
            self.passes = {
                tuple(shape): Passes(network, shape, bf16, recorder()) for shape in shapes
            }
            self.update = Update(optimiser, recorder())
        except RuntimeError:
            optimiser.zero_grad(set_to_none=True)
            raise
