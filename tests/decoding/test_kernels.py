"""The Triton kernels against their definitions in plain torch: on a GPU as they run, otherwise in
Triton's interpreter, in a process of its own since it is chosen before the import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from bench.decoding.engines.layers import HeadNorms
from bench.decoding.tree import Topology

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS = torch.cuda.is_available() or INTERPRETED
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter takes seconds for what a GPU does in microseconds: fewer heads and lengths there.
HEADS = 2 if INTERPRETED else 9
COMMITTED = [5, 130] if INTERPRETED else [0, 5, 60, 130]
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]

runs = pytest.mark.skipif(not RUNS, reason="runs on a GPU or in the interpreter")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.skipif(RUNS, reason="this is the other way to run them")
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count(".") > 20


@pytest.fixture(autouse=True, scope="module")
def scalars_for_numpy() -> Iterator[None]:
    """The interpreter turns one-element arrays into loop bounds, which numpy 2.4 refuses."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: object, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))  # type: ignore[attr-defined]

    with mock.patch.object(interpreter, "_patch_lang_tensor", patched):
        yield


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Error relative to the norm, or to one where sums cancel; NaN never passes."""
    scale = expected.double().norm().clamp(min=1.0)
    error = (found.double() - expected.double()).norm() / scale
    assert error < (1e-5 if dtype == torch.float32 else 1e-2), float(error)


def plain(function: str, *arguments: object, **more: object) -> Any:
    """The definition, in float32 at least."""
    from bench.decoding.engines import invariant, ops

    module = invariant if function in ("rotate", "attend_in_order") else ops
    with mock.patch.object(ops, "on_gpu", return_value=False):
        return getattr(module, function)(*arguments, **more)


@runs
@each_dtype
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (1, 41, 48),
        (1, 3, 2100),
        (1, 2, 8192),
        (1, 2, 4100),
        (5, 41, 576),
        (17, 20, 1152),
        (3, 70, 2600),
        (40, 20, 2624),
    ],
)
def test_linear(m: int, n: int, k: int, normed: bool, gated: bool, dtype: torch.dtype) -> None:
    x, weight = normal(m, k, dtype=dtype), normal(n * (1 + gated), k, dtype=dtype) * k**-0.5
    norm = normal(k, dtype=dtype).abs() if normed else None
    check_linear(x, weight, norm, gated, residual=None if gated else normal(m, n, dtype=dtype))


@runs
@each_dtype
@pytest.mark.parametrize("k", [100, 2600])
@pytest.mark.parametrize("m", [1, 3])
def test_linear_with_all_that_may_follow(m: int, k: int, dtype: torch.dtype) -> None:
    x, weight = normal(m, k, dtype=dtype), normal(20, k, dtype=dtype) * k**-0.5
    bias, scale, shift = (normal(20, dtype=dtype) + k for k in range(3))
    one_for_all = normal(1, 20, dtype=dtype)
    check_linear(x, weight, bias=bias, silu=True, residual=one_for_all, affine=(scale.abs(), shift))
    check_linear(x, weight, residual=one_for_all)
    check_linear(x, weight, bias=bias)
    check_linear(x, weight, normal(k, dtype=dtype).abs(), bias=bias)  # q, k, v of Qwen2


def check_linear(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None = None,
    halves: bool = False,
    bias: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
) -> None:
    from bench.decoding.engines import kernels

    found = kernels.linear(x, weight, norm, 1e-5, halves, bias, silu, residual, affine)
    wide = [None if t is None else t.float() for t in (norm, bias, residual)]
    after = None if affine is None else (affine[0].float(), affine[1].float())
    more = {"halves": halves, "bias": wide[1], "silu": silu, "residual": wide[2], "affine": after}
    close(found, plain("linear", x.float(), weight.float(), wide[0], 1e-5, **more), x.dtype)


@runs
@each_dtype
@pytest.mark.parametrize("parts", [0, 1, 3])
def test_add_norm(parts: int, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    x, weight = normal(5, 72, dtype=dtype), normal(72, dtype=dtype)
    change = normal(parts, 5, 72, dtype=dtype) if parts else None
    found = kernels.add_norm(x, change, weight, 1e-5)
    wide = None if change is None else change.float()
    expected = plain("add_norm", x.float(), wide, weight.float(), 1e-5)
    for a, b in zip(found, expected, strict=True):
        close(a, b, dtype)


@runs
@each_dtype
@pytest.mark.parametrize(("m", "n", "k"), [(16, 40, 72), (33, 20, 100), (70, 1100, 40)])
def test_gated(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    x, weight = normal(m, k, dtype=dtype), normal(2 * n, k, dtype=dtype) * k**-0.5
    close(kernels.gated(x, weight), plain("gated", x.float(), weight.float()), dtype)


@runs
@each_dtype
@pytest.mark.parametrize(("m", "n", "k"), [(16, 40, 1100), (20, 48, 72), (70, 40, 1100)])
def test_parts(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    x, weight = normal(m, k, dtype=dtype), normal(n, k, dtype=dtype) * k**-0.5
    expected = plain("parts", x.float(), weight.float())
    close(kernels.parts(x, weight).sum(dim=0), expected.sum(dim=0), dtype)


def head_norms(size: int, dtype: torch.dtype) -> tuple[HeadNorms, HeadNorms]:
    """Of queries and keys, and the same in float32."""
    q, k = normal(size, dtype=dtype), normal(size, dtype=dtype).flip(0)
    return HeadNorms(q, k, 1e-5), HeadNorms(q.float(), k.float(), 1e-5)


@runs
@each_dtype
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "length", "w", "normed"),
    [
        (9, 3, 64, 70, 1, False),
        (9, 3, 64, 130, 16, False),
        (4, 4, 32, 5, 7, True),
        (2, 1, 64, 70, 33, False),
        (14, 2, 64, 70, 5, True),
        (6, 1, 128, 40, 1, True),
    ],
)
def test_attend_rotated(
    heads: int, kv_heads: int, size: int, length: int, w: int, normed: bool, dtype: torch.dtype
) -> None:
    from bench.decoding.engines import kernels

    norms, wide_norms = head_norms(size, dtype) if normed else (None, None)
    keys, values = (normal(kv_heads, 300, size, dtype=dtype) for _ in range(2))
    qkv = normal(w, (heads + 2 * kv_heads) * size, dtype=dtype)
    angle = torch.outer(torch.arange(400.0), 10000 ** (-torch.arange(size // 2) / (size // 2)))
    cos, sin = angle.cos().to(DEVICE), angle.sin().to(DEVICE)
    visible = (torch.rand(w, w) < 0.4).to(DEVICE) | torch.eye(w, dtype=torch.bool, device=DEVICE)
    depths = torch.randint(0, 4, (w,), device=DEVICE)
    at = torch.tensor([length], device=DEVICE)
    places = (cos, sin, depths, at, visible.tril())
    wide = [t.float() for t in (qkv, keys, values)]
    expected = plain("attend_rotated", wide[0], heads, wide_norms, wide[1], wide[2], *places)
    found = kernels.attend_rotated(qkv, heads, norms, keys, values, *places)
    close(found, expected, dtype)
    close(keys, wide[1], dtype)  # written to the cache
    close(values, wide[2], dtype)


@runs
@each_dtype
@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize(("w", "m"), [(1, 1), (5, 9), (40, 64)])
def test_attend(w: int, m: int, context: bool, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    keys, values = (normal(HEADS, 300, 64, dtype=dtype) for _ in range(2))
    q, at = normal(w, HEADS, 64, dtype=dtype), torch.tensor([150], device=DEVICE)
    visible = (torch.rand(w, m) < 0.4).to(DEVICE)
    visible[:, 0] = True
    expected = plain("attend", q.float(), keys.float(), values.float(), at, visible, context)
    close(kernels.attend(q, keys, values, at, visible, context), expected, dtype)


@runs
@each_dtype
@pytest.mark.parametrize("v", [100, 9000])
def test_top_takes_the_lower_index_among_equals(v: int, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    logits = normal(5, v, dtype=dtype)
    logits[0, v - 7] = logits[0, 7] = logits[0, 3] = 9.0
    values, indices, total = kernels.top(logits, 4)
    assert indices[0, :3].tolist() == [3, 7, v - 7]
    assert torch.equal(values, logits.float().topk(4).values)
    assert torch.equal(logits.float().gather(1, indices), values)
    close(total, logits.float().logsumexp(dim=-1), torch.float32)


@runs
@each_dtype
@pytest.mark.parametrize(("heads", "consecutive"), [(9, False), (0, True)])
def test_place(heads: int, consecutive: bool, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    qkv = normal(3, (heads + 6) * 64, dtype=dtype)
    keys, values = (normal(3, 40, 64, dtype=dtype) for _ in range(2))
    angle = torch.outer(torch.arange(60.0), 10000 ** (-torch.arange(32.0) / 32))
    tables, length = (angle.cos().to(DEVICE), angle.sin().to(DEVICE)), torch.tensor([7]).to(DEVICE)
    wide = [t.float() for t in (keys, values)]
    expected = plain("rotate_rows", qkv.float(), heads, *wide, *tables, length, 2, 4, consecutive)
    kernels.rotate_rows(qkv, heads, keys, values, *tables, length, 2, 4, consecutive)
    for a, b in zip((keys, values), wide, strict=True):
        close(a, b, dtype)
    if heads:
        close(qkv.view(3, -1, 64)[:, :heads], expected, dtype)


@runs
@each_dtype
@pytest.mark.parametrize("d", [64, 72])
def test_embed(d: int, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    weight, tokens = normal(50, d, dtype=dtype), torch.tensor([3, 49, 0, 3], device=DEVICE)
    standard = normal(d, dtype=dtype), normal(d, dtype=dtype).abs() + 0.1
    assert torch.equal(kernels.embed(tokens, weight, None), weight[tokens])
    found, expected = (
        embed(tokens, weight, standard) for embed in (kernels.embed, partial(plain, "embed"))
    )
    assert torch.equal(found, expected)  # rounded where torch rounds


@runs
@each_dtype
@pytest.mark.parametrize("inner", [[], [2], [0, 3, 4]])
def test_sprout(inner: list[int], dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, device=DEVICE)

    above = torch.arange(6, device=DEVICE).view(2, 3)
    best = torch.tensor([[4, 0, 7], [1, 2, 9]], device=DEVICE)
    parent, rank = numbers(0, 0, 0, 1, 1), numbers(0, 1, 2, 0, 2)
    place = numbers(*(inner.index(i) if i in inner else -1 for i in range(5)))
    vocabulary = torch.arange(10, device=DEVICE) * 3 + 1
    weight = normal(50, 72, dtype=dtype)
    standard = normal(72, dtype=dtype), normal(72, dtype=dtype).abs() + 0.1
    given = (above, best, parent, rank, place, len(inner), vocabulary, weight, standard)
    expected = plain("sprout", *given)
    assert expected[0][:, 2].tolist() == [13, 1, 22, 4, 28]
    assert expected[1].tolist() == expected[0][inner].tolist()
    for a, b in zip(kernels.sprout(*given), expected, strict=True):
        assert torch.equal(a, b)


@runs
@each_dtype
@pytest.mark.parametrize(
    ("path", "accepted"), [([0, 2, 3, 5], 3), ([0, 2, 4, 0], 2), ([0, 3, 0, 0], 1), ([0] * 4, 0)]
)
@pytest.mark.parametrize("height", [3, 5])
def test_move(path: list[int], accepted: int, height: int, dtype: torch.dtype) -> None:
    """Rows whose goals are others' sources among them."""
    from bench.decoding.engines import kernels

    before = 7
    rows = normal(2, 2, 1, 3, 20, 64, dtype=dtype)
    length = torch.tensor([before + accepted + 1], device=DEVICE)
    kept = torch.tensor([*path, 0, 0, 0], device=DEVICE), torch.tensor(accepted, device=DEVICE)
    expected, goal = rows.clone(), length.item()
    plain("move", expected, length, *kept, height)
    source = [before + node for node in path[: accepted + 1]]
    assert torch.equal(expected[..., before:goal, :], rows[..., source, :])
    kernels.move(rows, length, *kept, height)
    assert torch.equal(rows[..., :goal, :], expected[..., :goal, :])


@runs
@each_dtype
@pytest.mark.parametrize("n", [1, 5])
def test_argmax_is_top_1(n: int, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    logits = normal(n, 9000, dtype=dtype)
    logits[:, [8000, 4096, 4095]] = 9.0
    assert torch.equal(kernels.top(logits, 1)[1].squeeze(1), plain("argmax", logits))


@runs
@each_dtype
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("n", "k"), [(41, 576), (20, 2624)])
def test_products_with_fixed_sums(n: int, k: int, halves: bool, dtype: torch.dtype) -> None:
    """A row's product is the same alone and among others, bit for bit, and it is the product."""
    from bench.decoding.engines import kernels

    x = normal(37, k, dtype=dtype)
    weight = normal(n * (1 + halves), k, dtype=dtype) * k**-0.5
    norm = normal(k, dtype=dtype).abs()
    nothing = (None, False, None, None)  # bias, SiLU, residual, affine
    found = kernels.linear(x, weight, norm, 1e-5, halves, *nothing, fixed=True)
    wide = plain("linear", x.float(), weight.float(), norm.float(), 1e-5, halves=halves)
    close(found, wide, dtype)
    for row in (0, 5, 16, 36):
        alone = kernels.linear(x[row : row + 1], weight, norm, 1e-5, halves, *nothing, fixed=True)
        same(alone[0], found[row])
    if not halves:
        sums = kernels.parts(x, weight, fixed=True)
        close(sums.sum(dim=0), x.float() @ weight.float().t(), dtype)
        same(kernels.parts(x[20:21], weight, fixed=True)[:, 0], sums[:, 20])


@runs
@each_dtype
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 2, 32), (3, 3, 64)])
@pytest.mark.parametrize("committed", COMMITTED)
def test_attention_in_order(
    committed: int, heads: int, kv_heads: int, size: int, dtype: torch.dtype
) -> None:
    """As its definition, and a drafted path as the same tokens one at a time, bit for bit."""
    from bench.decoding.engines import kernels

    parents = [-1, 0, 0, 1, 2, 4, 5, 5, 7, 8, 9]
    tree, w, rows = Topology.of(parents, DEVICE), len(parents), 256
    keys, values = (normal(kv_heads, rows, size, dtype=dtype) for _ in range(2))
    values = values.flip(1)
    q = normal(w, heads * size, dtype=dtype)
    table = torch.zeros(w, w, dtype=torch.int32, device=DEVICE)
    length = torch.tensor([committed], device=DEVICE)
    kernels.ancestors(tree.ancestors, tree.depths, table)
    assert table[10, :8].tolist() == [0, 2, 4, 5, 7, 8, 9, 10]
    found = kernels.attend_in_order(q, heads, keys, values, tree.depths, table, length)
    shape = (keys.float(), values.float(), tree.depths, table, length)
    close(found, plain("attend_in_order", q.view(w, heads, size).float(), *shape), dtype)
    masked = plain("attend", q.view(w, heads, size).float(), *shape[:2], length, tree.ancestors)
    close(found, masked.flatten(1), dtype)
    one = torch.zeros(1, dtype=torch.long, device=DEVICE)
    for depth, node in enumerate(table[10, :8].tolist()):
        place = committed + depth
        for cached in (keys, values):
            cached[:, place] = cached[:, committed + node].clone()
        alone = kernels.attend_in_order(
            q[node : node + 1], heads, keys, values, one, one.int()[None], length + depth
        )
        same(alone[0], found[node])


@runs
@each_dtype
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_into_the_cache(normed: bool, dtype: torch.dtype) -> None:
    from bench.decoding.engines import kernels

    heads, kv_heads, size, w, rows = 4, 2, 32, 5, 64
    qkv = normal(w, (heads + 2 * kv_heads) * size, dtype=dtype)
    depths = torch.tensor([0, 1, 1, 2, 3], device=DEVICE)
    length = torch.tensor([7], device=DEVICE)
    cos, sin = (normal(rows, size // 2, dtype=torch.float32) for _ in range(2))
    caches = [torch.zeros(kv_heads, rows, size, dtype=dtype, device=DEVICE) for _ in range(4)]
    norms = head_norms(size, dtype)[0] if normed else None
    q = plain("rotate", qkv.clone(), heads, norms, *caches[:2], cos, sin, depths, length)
    found = qkv.clone()
    kernels.rotate(found, heads, norms, caches[2], caches[3], cos, sin, depths, length)
    close(found[:, : heads * size], q.flatten(1), dtype)
    close(caches[2], caches[0], dtype)
    close(caches[3], caches[1], dtype)


def same(found: Tensor, expected: Tensor) -> None:
    """Bit for bit on a GPU; the interpreter's products are numpy's, whose sums depend on shapes."""
    if INTERPRETED:
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)
