"""Adapters for peers' kernels, against packages of the same layout whose functions are ours: none of theirs is here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from specdecodes.benchmark.kernels import command, measure
from specdecodes.benchmark.kernels.measure import Case, Row, measured_peer
from specdecodes.benchmark.kernels.ops import OPS
from specdecodes.benchmark.kernels.peers import PEERS, load_peers
from specdecodes.benchmark.kernels.problems import Where
from specdecodes.benchmark.kernels.timing import Roofline

F32 = Where(torch.device("cpu"), torch.float32)
FLAT = Roofline(bandwidth=1e9, peak=1e10, launch=None, source="made up")
CASES = [
    ("mamba-ssm", "mamba2_step", "tiny-bamba", 1),
    ("flash-linear-attention", "gated_delta_tree", "tiny-qwen3_next", 13),
    ("flash-linear-attention", "kimi_delta_tree", "tiny-kimi_linear", 13),
    ("stree", "mamba2_tree", "tiny-mamba_in_llama", 13),
    ("stree", "tree_conv", "tiny-bamba", 13),
    ("stree", "tree_conv", "tiny-bamba", 2),
    ("stree", "mamba2_commit", "tiny-bamba", 13),
    ("stree", "mamba2_commit", "tiny-mamba_in_llama", 13),
    ("stree", "mamba2_commit", "tiny-mamba_in_llama", 2),
]
"""Every adapter: the peer, our op, a shape and a number of nodes; heads of the last share x and B, its conv is of 3."""

RULE = """
import torch
from fla.utils import __version__, nothing

def rule(q, k, v, decay, beta, initial_state, use_qk_l2norm_in_kernel):
    assert use_qk_l2norm_in_kernel and beta.shape == v.shape[:3]
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    state, ys = initial_state.clone(), []
    for t in range(q.shape[1]):
        state = state * decay[:, t]
        u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state))
        state = state + k[:, t, :, :, None] * u[:, :, None]
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * q.shape[-1] ** -0.5, state))
    return torch.stack(ys, 1), None
"""

SOURCES = {
    "mamba-ssm/mamba_ssm/ops/triton/softplus.py": "nothing = None",
    "mamba-ssm/mamba_ssm/ops/triton/selective_state_update.py": """
import torch
from mamba_ssm.ops.triton.softplus import nothing

def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    assert z is None and not dt_softplus and not dt_bias.any()
    assert A.stride()[1:] == (0, 0) and dt.stride(-1) == dt_bias.stride(-1) == D.stride(-1) == 0
    groups = state.shape[1] // B.shape[1]
    B, C = (each.repeat_interleave(groups, dim=1) for each in (B, C))
    state.copy_(state * (dt[..., None] * A).exp() + (dt * x)[..., None] * B[:, :, None])
    return (state @ C[..., None]).squeeze(-1) + D * x
""",
    "stree/mamba_ssm/ops/triton/tree_scan.py": """
import torch
from specdecodes.kernels.mamba2_scan.naive import tree_scan

def tree_scan_mask_combined_fwd(x, dt, A, B, C, dA_mask, chunk_size, D=None, z=None, dt_bias=None, initial_states=None,
                                seq_idx=None, dt_softplus=False, dt_limit=(0.0, float("inf"))):
    assert x.shape[1] < chunk_size
    y = tree_scan(x, dt, A, B, C, D, initial_states, dA_mask.bool())
    return y, None, dt, None

def tree_mask_conv1d(x, mask, state, weight, bias, activation):
    assert mask.shape == (x.shape[0], x.shape[2], x.shape[2]) and mask.dtype == torch.long
    y = torch.empty_like(x)
    for t, row in enumerate(mask[0]):
        path = torch.cat([state, x[:, :, row.nonzero().flatten()]], -1)[:, :, -weight.shape[1]:]
        y[:, :, t] = (path * weight).sum(-1) + bias
    assert activation == "silu"
    return y * y.sigmoid()

def mask_index_gather(mask, state_len, right_align=True):
    assert mask.ndim == 2 and mask.dtype == torch.bool and right_align
    return torch.stack([row.nonzero().flatten()[-state_len:] for row in mask])[None]
""",
    "stree/mamba_ssm/ops/triton/selective_state_update.py": """
import torch
from mamba_ssm.ops.triton.tree_scan import mask_index_gather

def selective_state_update_Nstep(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    rows, heads, dim, dstate = state.shape
    assert x.shape == dt.shape == (rows, x.shape[1], heads, dim) and A.shape == (heads, dim, dstate)
    assert B.shape == C.shape == (rows, x.shape[1], B.shape[2], dstate) and D.shape == dt_bias.shape == (heads, dim)
    assert z is None and dt_softplus and A.stride()[1:] == (0, 0) and dt.stride(-1) == dt_bias.stride(-1) == 0
    masked = dt[..., 0, 0] == -1e4
    assert not x[masked].any() and not B[masked].any()
    dt = torch.nn.functional.softplus(dt + dt_bias)
    B = B.repeat_interleave(heads // B.shape[2], dim=2)
    for t in range(x.shape[1]):
        state.copy_(state * (dt[:, t, :, :, None] * A).exp() + (dt * x)[:, t, :, :, None] * B[:, t, :, None])
    return x
""",
    "flash-linear-attention/fla/utils.py": "from . import __version__\nnothing = None",
    "flash-linear-attention/fla/ops/gated_delta_rule/fused_recurrent.py": RULE
    + """
def fused_recurrent_gated_delta_rule(q, k, v, g=None, gk=None, gv=None, beta=None, scale=None, initial_state=None,
                                     output_final_state=False, use_qk_l2norm_in_kernel=False, **kwargs):
    assert g.shape == beta.shape and not kwargs
    return rule(q, k, v, g[..., None, None].exp(), beta, initial_state, use_qk_l2norm_in_kernel)
""",
    "flash-linear-attention/fla/ops/kda/fused_recurrent.py": RULE
    + """
def fused_recurrent_kda(q, k, v, g, beta, A_log=None, dt_bias=None, scale=None, initial_state=None,
                        output_final_state=False, use_qk_l2norm_in_kernel=False, **kwargs):
    assert g.shape == k.shape and not kwargs
    return rule(q, k, v, g[..., None].exp(), beta, initial_state, use_qk_l2norm_in_kernel)
""",
}
"""What each file of a peer's holds here."""
BROKEN = "raise RuntimeError('the package wants its compiled extension')"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every peer's layout in a folder of its name; the packages themselves do not import."""
    for name, source in SOURCES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        for package in list(Path(name).parents)[:-2]:
            (tmp_path / package / "__init__.py").write_text(BROKEN)
    return tmp_path


def run(name: str, op: str, shape: str, folder: Path, nodes: int) -> Row:
    (loaded,) = load_peers(f"{name}={folder / name}", [op])
    return measured_peer(Case(shape, op, nodes), F32, loaded, FLAT, repeats=2)


def scanned(folder: Path, nodes: int = 13) -> Row:
    return run("stree", "mamba2_tree", "tiny-mamba_in_llama", folder, nodes)


def test_every_adapter_is_run_here() -> None:
    assert {case[:2] for case in CASES} == {(name, peer.op) for name, peers in PEERS.items() for peer in peers}


@pytest.mark.parametrize(("name", "op", "shape", "nodes"), CASES)
def test_a_peer_is_called_on_our_inputs(
    name: str, op: str, shape: str, nodes: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MOST_COPIES", 2)
    row = run(name, op, shape, folder, nodes)
    assert row.form == f"peer:{name}" and not row.note
    assert row.error is not None and row.error < 2e-5
    assert row.seconds is not None and row.seconds > 0


def test_nothing_stays_imported(folder: Path) -> None:
    """STree's package has the name of mamba-ssm's."""
    before = set(sys.modules), list(sys.path)
    for name in PEERS:
        load_peers(f"{name}={folder / name}", OPS)
    assert not any(each.split(".")[0] in ("mamba_ssm", "fla") for each in sys.modules)
    assert sys.path == before[1]


def test_what_a_peer_fails_with_is_a_note(folder: Path) -> None:
    """The mask of 256 nodes: STree's kernels end there."""
    row = scanned(folder, nodes=256)
    assert row.seconds is None and row.note == "peer:stree failed: AssertionError"


def test_a_wrong_peer_shows(folder: Path) -> None:
    file = folder / "stree" / "mamba_ssm/ops/triton/tree_scan.py"
    file.write_text(file.read_text().replace("return y,", "return 1.1 * y,"))
    assert scanned(folder).error == pytest.approx(0.1, rel=1e-3)


def test_only_what_stands_beside_an_op_is_imported(folder: Path) -> None:
    """So that an older version, which lacks the other kernel, still serves."""
    (folder / "flash-linear-attention/fla/ops/kda/fused_recurrent.py").unlink()
    text = f"flash-linear-attention={folder / 'flash-linear-attention'}"
    (loaded,) = load_peers(text, ["gated_delta_tree", "tree_conv"])
    assert loaded.peer.op == "gated_delta_tree"
    with pytest.raises(ValueError, match="expected a folder that holds fla/ops/kda/"):
        load_peers(text, ["kimi_delta_tree"])


def test_scan_conv_and_replay_together(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three of ours and of the peer's have a row at the size of the tree, and a line sums them up."""
    monkeypatch.setattr(measure, "MOST_COPIES", 1)
    monkeypatch.setattr(command, "measure_roofline", lambda *_: FLAT)
    ops = [flag for op in ("mamba2_tree", "tree_conv", "mamba2_commit") for flag in ("--op", op)]
    flags = ["--shape", "tiny-bamba", "--tree-size", "13", "--repeats", "2", "--device", "cpu"]
    assert command.main([*flags, *ops, "--implementation", "naive", "--peer", f"stree={folder / 'stree'}"]) == 0
    printed = capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if line.startswith("scan + conv + replay"))
    assert re.fullmatch(
        r"scan \+ conv \+ replay of \d layers, 13 nodes: naive [\d.]+ us, peer:stree [\d.]+ us: "
        r"[\d.]+ times as fast, not all in CUDA graphs",
        line,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stree", "--peer: expected NAME=FOLDER, got 'stree'; for example --peer stree=../stree"),
        ("stree=", "--peer: expected NAME=FOLDER, got 'stree='; for example --peer stree=../stree"),
        ("vllm=x", "--peer: expected one of flash-linear-attention, mamba-ssm, stree, got 'vllm'"),
    ],
)
def test_names_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_peers(text, OPS)


def test_folders_that_are_none(folder: Path) -> None:
    place = folder / "flash-linear-attention"
    message = (
        "--peer: stree: expected a folder that holds mamba_ssm/ops/triton/tree_scan.py "
        f"(https://github.com/wyc1997/stree), got {str(place)!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_peers(f"stree={place}", OPS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_that_name", "does not import here: No module named 'nothing_of_that_name'"),
        ("x = 1", "expected a function tree_scan_mask_combined_fwd in "),
        (
            "def tree_scan_mask_combined_fwd(x, dt, A, B, C, chunk_size): ...",
            "to take dA_mask, D, initial_states, got x",
        ),
    ],
)
def test_modules_that_do_not_fit(source: str, message: str, folder: Path) -> None:
    (folder / "stree/mamba_ssm/ops/triton/tree_scan.py").write_text(source)
    with pytest.raises(ValueError, match=f"^--peer: stree: .*{re.escape(message)}"):
        load_peers(f"stree={folder / 'stree'}", OPS)
    assert "mamba_ssm" not in sys.modules
