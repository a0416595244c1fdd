"""The spectrum of one expert's change of a matrix: is it a few directions or many?

Singular values come from the Gram matrix of the shorter side, summed up in float64 from blocks, so that neither memory
nor the time between two looks at `stop` grows with the tensor. A side too long for that gets its largest values only,
by block Lanczos over repeated passes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import torch

from merging.devices import resolve_device
from merging.errors import MergingError
from merging.inspecting.one_tensor import Stop, find_tensor, go_on, read_blocks
from merging.plan import Plan
from merging.tensor_plan import TensorPlan

LONGEST_SIDE = 8192
"""Up to this length of the shorter side all values are computed: 13 s for 8192 on two cores, 1.5 s for 4096."""
BLOCK = 4 << 20
"""Elements that are read at once."""
BUFFER = 32 << 20
"""Elements of a wide matrix that are gathered at once, columns by columns."""
STEP = 512
"""Columns of a wide matrix that are multiplied between two looks at `stop`."""
WIDTH, PASSES = 32, 16
"""Vectors added to the Lanczos basis in a pass over the file, and the most passes."""
LEADING = 32
"""Values wanted of a side that is too long for all of them."""
CLOSE = 0.01
"""A leading value counts once its residual says that its square is known to this share."""
POLL = 0.05
_decomposing = threading.Lock()
"""One decomposition at a time, those that nobody waits for any more included."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a change δ [rows, columns], float64 [k], descending.

    `energy` = ‖δ‖_F². `complete`: the values that are missing are 0; else the largest k, known to the share
    `accuracy` of each. Values up to `floor` cannot be told from rounding and are 0.
    """

    values: torch.Tensor
    energy: float
    shape: tuple[int, int]
    complete: bool = True
    accuracy: float = 0.0
    floor: float = 0.0

    @property
    def stable_rank(self) -> float | None:
        """‖δ‖_F² / σ1²; None where nothing was changed."""
        return self.energy / float(self.values[0]) ** 2 if self._changed else None

    @property
    def effective_rank(self) -> float | None:
        """exp of the entropy of σ / Σσ; None where nothing was changed or only the largest values are known.

        Source: Roy & Vetterli 2007, The effective rank.
        """
        if not self._changed or not self.complete:
            return None
        shares = self.values / self.values.sum()
        return float(torch.special.entr(shares).sum().exp())

    def rank_of(self, share: float) -> int | None:
        """How many of the largest values hold a share of the energy, such as 0.9; None where too few are known."""
        if not self._changed:
            return None
        held = self.values.square().cumsum(0)
        needed = share * (float(held[-1]) if self.complete else self.energy)
        return int((held < needed).sum()) + 1 if float(held[-1]) >= needed else None

    @property
    def note(self) -> str:
        """What to know about these numbers, in a sentence."""
        if self.complete:
            return f"Values below {self.floor:.1e} cannot be told from rounding and count as 0."
        return (
            f"The shorter side is longer than {LONGEST_SIDE:,}, so only the {len(self.values)} largest values were "
            f"computed, each to ±{100 * max(self.accuracy, 1e-3):.1f} %; the effective rank needs all of them."
        )

    @property
    def _changed(self) -> bool:
        return self.values.numel() > 0 and float(self.values[0]) > 0


def spectrum(
    plan: Plan, name: str, expert: int, *, device: str = "auto", stop: Stop | None = None
) -> Spectrum:
    """The spectrum of what expert number `expert` changed in a matrix.

    Squaring costs digits: what is smaller than about 1e-7 of the largest value is lost. A stop is heard within a block;
    the last step, the decomposition, is left to end by itself on a thread of its own, and another waits for it.

    Raises:
        MergingError: no such tensor or expert, no matrix, or not finite.
        Stopped: `stop` said so.
    """
    tensor = find_tensor(plan, name)
    if not 0 <= expert < len(tensor.experts):
        raise MergingError(f"'{name}': has no expert {expert}; there are {len(tensor.experts)}, from 0 up.")
    if len(tensor.info.shape) != 2:
        raise MergingError(
            f"'{name}': has the shape {list(tensor.info.shape)}; only a matrix has a spectrum. Choose a weight with rows "
            "and columns."
        )
    change = _Change(plan, tensor, expert, device, stop)
    if not tensor.info.elements:
        return Spectrum(torch.zeros(0, dtype=torch.float64), 0.0, change.shape)
    return _whole(change) if min(change.shape) <= LONGEST_SIDE else _leading(change)


@dataclass(frozen=True)
class _Change:
    """The matrix δ of one expert, read again by whoever asks."""

    plan: Plan
    tensor: TensorPlan
    expert: int
    device: str
    stop: Stop | None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.tensor.info.shape
        return rows, columns

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, device=resolve_device(self.device))

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """First row and float32 values of every block.

        Raises:
            MergingError: not finite.
        """
        pieces = read_blocks(
            self.plan, self.tensor, experts=[self.expert], elements=BLOCK, device=self.device, stop=self.stop
        )
        for piece in pieces:
            delta = piece.deltas[0]
            if not bool(delta.isfinite().all()):
                raise MergingError(
                    f"'{self.tensor.info.name}': the change of {self.tensor.models[self.expert]} is not finite there, so it "
                    "has no spectrum. Use an intact model."
                )
            yield piece.start, delta


def _whole(change: _Change) -> Spectrum:
    gram = _tall_gram(change) if change.shape[0] >= change.shape[1] else _wide_gram(change)
    energy = float(gram.trace())
    squares = _waited_for(lambda: torch.linalg.eigvalsh(gram).flip(0).cpu(), change.stop)
    unknown = _unknown(change.shape) * float(squares[0].clamp(min=0))
    squares = squares.where(squares > unknown, 0.0)
    return Spectrum(squares.sqrt(), energy, change.shape, floor=unknown**0.5)


def _tall_gram(change: _Change) -> torch.Tensor:
    """δᵀδ, float64 [columns, columns]."""
    gram = change.zeros(change.shape[1], change.shape[1])
    for _, block in change.blocks():
        wide = block.double()
        gram.addmm_(wide.T, wide)
    return gram


def _wide_gram(change: _Change) -> torch.Tensor:
    """δδᵀ, float64 [rows, rows]; every pass over the file gathers as many columns as the buffer holds."""
    rows, columns = change.shape
    gram = change.zeros(rows, rows)
    width = min(columns, max(STEP, BUFFER // rows))
    buffer = change.zeros(rows, width, dtype=torch.float32)
    for first in range(0, columns, width):
        some = buffer[:, : min(width, columns - first)]
        for start, block in change.blocks():
            some[start : start + len(block)] = block[:, first : first + some.shape[1]]
        for step in some.split(STEP, 1):
            go_on(change.stop)
            wide = step.double()
            gram.addmm_(wide, wide.T)
    return gram


def _leading(change: _Change) -> Spectrum:
    """The largest values by block Lanczos with full reorthogonalisation (Golub & Underwood 1977), Rayleigh-Ritz."""
    columns = change.shape[1]
    basis, images = change.zeros(columns, 0), change.zeros(columns, 0)
    start = torch.randn(columns, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    new = torch.linalg.qr(start.to(basis.device)).Q
    found = None
    while found is None or (found.values.numel() < LEADING and basis.shape[1] < min(columns, PASSES * WIDTH)):
        image, energy = _applied(change, new)
        basis, images = torch.cat([basis, new], 1), torch.cat([images, image], 1)
        found = _ritz(basis, images, energy, change.shape)
        # the second projection mends what cancellation left of the first
        for _ in range(2):
            image = torch.linalg.qr(image - basis @ (basis.T @ image)).Q
        new = image[:, : columns - basis.shape[1]]
        go_on(change.stop)
    return found


def _ritz(basis: torch.Tensor, images: torch.Tensor, energy: float, shape: tuple[int, int]) -> Spectrum:
    """The values that a basis and its images under δᵀδ give, as far as their residuals say that they are close."""
    inner = basis.T @ images
    squares, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    squares, vectors = squares.flip(0)[:LEADING], vectors.flip(1)[:, :LEADING]
    errors = torch.linalg.vector_norm(images @ vectors - basis @ vectors * squares, dim=0)
    unknown = _unknown(shape) * squares[0].clamp(min=0)
    squares = squares.where(squares > unknown, 0.0)
    zero = squares == 0
    known = max(
        1, int(((errors <= CLOSE * squares) | zero & (errors <= CLOSE * squares[0])).long().cumprod(0).sum())
    )
    accuracy = float((errors / squares).where(~zero, 0.0)[:known].max()) / 2
    return Spectrum(
        values=squares[:known].sqrt().cpu(),
        energy=energy,
        shape=shape,
        complete=bool(zero[known - 1]),
        accuracy=accuracy,
        floor=float(unknown) ** 0.5,
    )


def _unknown(shape: tuple[int, int]) -> float:
    """Eigenvalues of a Gram matrix carry an error of a few √n·ε of the largest one."""
    return 4 * min(shape) ** 0.5 * torch.finfo(torch.float64).eps


def _applied(change: _Change, vectors: torch.Tensor) -> tuple[torch.Tensor, float]:
    """δᵀδ times some vectors [columns, k], and ‖δ‖_F², in one pass."""
    image, energy = torch.zeros_like(vectors), 0.0
    for _, block in change.blocks():
        wide = block.double()
        image.addmm_(wide.T, wide @ vectors)
        energy += float(wide.square().sum())
    return image, energy


def _waited_for(work: Callable[[], torch.Tensor], stop: Stop | None) -> torch.Tensor:
    """What `work` returns, from a thread that is left alone once `stop` says so."""
    found: SimpleQueue[torch.Tensor | BaseException] = SimpleQueue()

    def run() -> None:
        with _decomposing:
            try:
                go_on(stop)
                found.put(work())
            except BaseException as error:
                found.put(error)

    threading.Thread(target=run, name="spectrum", daemon=True).start()
    while True:
        try:
            result = found.get(timeout=POLL)
        except Empty:
            go_on(stop)
            continue
        if isinstance(result, RuntimeError):  # torch's word for no convergence, and for no memory
            reason = str(result).splitlines()[0]
            raise MergingError(
                f"spectrum: this matrix cannot be decomposed here ({reason}). Choose a smaller one."
            )
        if isinstance(result, BaseException):
            raise result
        return result
