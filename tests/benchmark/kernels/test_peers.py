"""Adapters for peers' kernels, against packages of the same layout whose functions are ours: none of theirs is here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from specdecodes.benchmark.kernels import measure
from specdecodes.benchmark.kernels.measure import Case, Row, measured_peer
from specdecodes.benchmark.kernels.peers import PEERS, load_peer
from specdecodes.benchmark.kernels.problems import Where
from specdecodes.benchmark.kernels.timing import Roofline

F32 = Where(torch.device("cpu"), torch.float32)
FLAT = Roofline(bandwidth=1e9, peak=1e10, launch=None, source="made up")
SHAPE = {"mamba-ssm": "tiny-bamba", "stree": "tiny-mamba_in_llama", "flash-linear-attention": "tiny-qwen3_next"}

SOURCES = {
    "mamba-ssm": """
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
    "stree": """
from specdecodes.kernels.mamba2_scan.naive import tree_scan

def tree_scan_mask_combined_fwd(x, dt, A, B, C, dA_mask, chunk_size, D=None, z=None, initial_states=None):
    assert x.shape[1] < chunk_size
    y = tree_scan(x, dt, A, B, C, D, initial_states, dA_mask.bool())
    return y, None, dt, None
""",
    "flash-linear-attention": """
import torch
from fla.utils import nothing

def fused_recurrent_gated_delta_rule(q, k, v, g=None, beta=None, scale=None, initial_state=None,
                                     output_final_state=False, use_qk_l2norm_in_kernel=False):
    assert use_qk_l2norm_in_kernel and g.ndim == beta.ndim == 3
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    state, ys = initial_state.clone(), []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state))
        state = state + k[:, t, :, :, None] * u[:, :, None]
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * q.shape[-1] ** -0.5, state))
    return torch.stack(ys, 1), None
""",
}
BROKEN = "raise RuntimeError('the package wants its compiled extension')"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every peer's layout in a folder of its name; the packages themselves do not import."""
    for name, source in SOURCES.items():
        file = tmp_path / name / Path(*PEERS[name].module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True)
        file.write_text(source)
        for package in list(file.relative_to(tmp_path / name).parents)[:-1]:
            (tmp_path / name / package / "__init__.py").write_text(BROKEN)
        (file.parent / "softplus.py").write_text("nothing = None")
        (tmp_path / name / package / "utils.py").write_text("nothing = None")
    return tmp_path


def run(name: str, folder: Path, nodes: int = 13) -> Row:
    loaded = load_peer(f"{name}={folder / name}")
    return measured_peer(Case(SHAPE[name], PEERS[name].op, nodes), F32, loaded, FLAT, repeats=2)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_called_on_our_inputs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_COPIES", 2)
    row = run(name, folder, nodes=1 if name == "mamba-ssm" else 13)
    assert row.form == f"peer:{name}" and not row.note
    assert row.error is not None and row.error < 2e-5
    assert row.seconds is not None and row.seconds > 0


def test_nothing_stays_imported(folder: Path) -> None:
    """STree's package has the name of mamba-ssm's."""
    before = set(sys.modules), list(sys.path)
    for name in PEERS:
        load_peer(f"{name}={folder / name}")
    assert not any(each.split(".")[0] in ("mamba_ssm", "fla") for each in sys.modules)
    assert sys.path == before[1]


def test_what_a_peer_fails_with_is_a_note(folder: Path) -> None:
    """The mask of 256 nodes: STree's kernels end there."""
    row = run("stree", folder, nodes=256)
    assert row.seconds is None and row.note == "peer:stree failed: AssertionError"


def test_a_wrong_peer_shows(folder: Path) -> None:
    file = folder / "stree" / "mamba_ssm/ops/triton/tree_scan.py"
    file.write_text(file.read_text().replace("return y,", "return 1.1 * y,"))
    assert run("stree", folder).error == pytest.approx(0.1, rel=1e-3)


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
        load_peer(text)


def test_folders_that_are_none(folder: Path) -> None:
    place = folder / "flash-linear-attention"
    message = (
        "--peer: stree: expected a folder that holds mamba_ssm/ops/triton/tree_scan.py "
        f"(https://github.com/wyc1997/stree), got {str(place)!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_peer(f"stree={place}")


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
        load_peer(f"stree={folder / 'stree'}")
    assert "mamba_ssm" not in sys.modules
