from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gritkit.checkpoint.digest import WeightsDigest, digest_of
from gritkit.files import home
from gritkit.model import GritModel
from tests.models import grit_model


def saved(folder: Path, seed: int = 0) -> tuple[nn.Module, Path]:
    """A small module and a file that stands for the one it was read from."""
    torch.manual_seed(seed)
    lm = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3).to(torch.bfloat16))
    path = folder / "model.safetensors"
    path.write_bytes(b"".join(x.detach().float().numpy().tobytes() for x in lm.state_dict().values()))
    return lm, path


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRITKIT_HOME", str(tmp_path / "home"))


def kept() -> list[Path]:
    folder = home() / "digests"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def forge() -> str:
    """Put another digest in the place of the kept one; whoever answers with it did not compute."""
    (path,) = kept()
    path.write_text("f" * 64)
    return "f" * 64


def test_it_is_over_names_types_shapes_and_numbers(tmp_path: Path) -> None:
    lm, _ = saved(tmp_path)
    whole = hashlib.blake2b(digest_size=32)
    for name, x in sorted(lm.state_dict().items()):
        one = hashlib.blake2b(f"{name} {x.dtype} {tuple(x.shape)}\n".encode(), digest_size=32)
        one.update(bytes(x.contiguous().view(-1).view(torch.uint8).tolist()))
        whole.update(one.digest())
    assert digest_of(lm) == whole.hexdigest()
    changes: list[Callable[[nn.Module], nn.Module]] = [
        lambda lm: lm.double(),
        lambda lm: nn.Sequential(*[lm[0], lm[2], lm[1]]),
        lambda lm: nn.Sequential(nn.Linear(7, 5), *list(lm)[1:]),
    ]
    found = {digest_of(change(saved(tmp_path)[0])) for change in changes}
    with torch.no_grad():
        lm[0].weight[0, 0] = torch.nextafter(lm[0].weight[0, 0], torch.tensor(9.0))
    found.add(digest_of(lm))
    assert len(found - {whole.hexdigest()}) == 4


def test_the_order_in_memory_does_not_count(tmp_path: Path) -> None:
    lm, _ = saved(tmp_path)
    turned = saved(tmp_path)[0]
    turned[0].weight = nn.Parameter(turned[0].weight.detach().t().contiguous().t())
    assert digest_of(turned) == digest_of(lm)


def test_it_is_computed_once_and_kept(tmp_path: Path) -> None:
    lm, path = saved(tmp_path)
    value = WeightsDigest(lm, [path]).value()
    assert value == digest_of(lm)
    assert [file.read_text() for file in kept()] == [value]
    forged = forge()
    assert WeightsDigest(lm, [path]).value() == forged


def test_without_files_nothing_is_kept(tmp_path: Path) -> None:
    lm, _ = saved(tmp_path)
    assert WeightsDigest(lm).value() == digest_of(lm)
    assert kept() == []


@pytest.mark.parametrize("touch", ["written", "touched", "replaced", "another folder"])
def test_other_files_are_hashed_again(tmp_path: Path, touch: str) -> None:
    lm, path = saved(tmp_path)
    WeightsDigest(lm, [path]).value()
    forged = forge()
    if touch == "written":
        path.write_bytes(path.read_bytes() + b"x")
    elif touch == "touched":
        os.utime(path, ns=(1, 1))
    elif touch == "replaced":  # same content, size and times
        seen = path.stat()
        shutil.copy(path, path.with_name("other"))
        os.replace(path.with_name("other"), path)
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    else:
        (tmp_path / "elsewhere").mkdir()
        path = Path(shutil.copy2(path, tmp_path / "elsewhere"))
    assert WeightsDigest(lm, [path]).value() == digest_of(lm) != forged


def test_files_that_changed_since_they_were_loaded_keep_nothing(tmp_path: Path) -> None:
    """A training run saves over the folder of a model in memory: its digest must not be filed under the new files."""
    lm, path = saved(tmp_path)
    digest = WeightsDigest(lm, [path])
    other, _ = saved(tmp_path, seed=1)
    assert digest.value() == digest_of(lm)
    assert kept() == []
    assert WeightsDigest(other, [path]).value() == digest_of(other) != digest_of(lm)


def _in_place(lm: nn.Module) -> None:
    with torch.no_grad():
        lm[0].weight.mul_(2)


def _past_autograd(lm: nn.Module) -> None:
    lm[0].weight.data.mul_(2)


def _replaced(lm: nn.Module) -> None:
    lm[0].weight = nn.Parameter(lm[0].weight.detach() * 2)


def _buffer(lm: nn.Module) -> None:
    lm[1].running_mean.add_(1)


def _trained(lm: nn.Module) -> None:
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.1, foreach=True)
    lm[0](torch.ones(1, 5)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("change", [_in_place, _past_autograd, _replaced, _buffer, _trained])
def test_weights_that_changed_in_memory_are_hashed(tmp_path: Path, change: Callable[[nn.Module], None]) -> None:
    lm, path = saved(tmp_path)
    digest = WeightsDigest(lm, [path])
    before = digest.value()
    forged = forge()
    change(lm)
    assert digest.value() == digest_of(lm) not in (before, forged)
    assert [file.read_text() for file in kept()] == [forged]  # and the files' own stays as it was
    assert WeightsDigest(lm, [path]).value() == digest_of(lm)  # as though loaded so: other numbers, another place


@pytest.mark.parametrize("content", [b"", b"f" * 63, b"f" * 65, b"F" * 64, b"\xff" * 64, b"g" * 64])
def test_a_damaged_record_is_computed_again(tmp_path: Path, content: bytes) -> None:
    lm, path = saved(tmp_path)
    value = WeightsDigest(lm, [path]).value()
    kept()[0].write_bytes(content)
    assert WeightsDigest(lm, [path]).value() == value
    assert kept()[0].read_text() == value


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, path = saved(tmp_path)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRITKIT_HOME", str(tmp_path / "file"))
    assert WeightsDigest(lm, [path]).value() == digest_of(lm)


def test_weights_that_are_gone_from_the_disk_are_hashed(tmp_path: Path) -> None:
    lm, path = saved(tmp_path)
    digest = WeightsDigest(lm, [path])
    path.unlink()
    assert digest.value() == digest_of(lm)
    assert WeightsDigest(lm, [path]).value() == digest_of(lm)
    assert kept() == []


def test_weights_made_in_inference_mode_have_a_digest(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    with torch.inference_mode():
        lm, _ = saved(tmp_path)
    assert WeightsDigest(lm, [path]).value() == WeightsDigest(lm, [path]).value() == digest_of(lm)


# -- in a model ----------------------------------------------------------------------------------------------------


def test_a_loaded_model_keeps_it_and_the_next_start_uses_it(tmp_path: Path) -> None:
    grit_model("llama").save_pretrained(tmp_path / "model")
    first = GritModel.from_pretrained(tmp_path / "model", device="cpu")
    fingerprint = first.fingerprint
    assert [path.read_text() for path in kept()] == [digest_of(first.lm)]
    assert GritModel.from_pretrained(tmp_path / "model", device="cpu").fingerprint == fingerprint
    forge()
    assert GritModel.from_pretrained(tmp_path / "model", device="cpu").fingerprint != fingerprint
    half = GritModel.from_pretrained(tmp_path / "model", device="cpu", dtype="bfloat16")
    assert half.fingerprint != fingerprint
    assert len(kept()) == 2


def test_a_model_that_was_trained_on_has_another_fingerprint(tmp_path: Path) -> None:
    grit_model("llama").save_pretrained(tmp_path / "model")
    loaded = GritModel.from_pretrained(tmp_path / "model", device="cpu")
    before = loaded.fingerprint
    with torch.no_grad():
        loaded.lm.get_input_embeddings().weight[5] += 1
    loaded.forget_fingerprint()
    assert loaded.fingerprint != before
