"""How many threads compute, and how they wait."""

import os
import subprocess
import sys

import pytest
import torch

from kandinsky22 import Kandinsky, text2img
from kandinsky22.threads import WORK_PER_THREAD, let_threads_sleep, limited_threads, threads_for


def test_a_call_gets_one_thread_for_each_share_of_work() -> None:
    counts = [threads_for(work * WORK_PER_THREAD, 8) for work in (0, 0.9, 1, 2.5, 8, 1000)]
    assert counts == [1, 1, 1, 2, 8, 8]
    assert threads_for(1000 * WORK_PER_THREAD, 1) == 1


def test_a_call_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(ZeroDivisionError), limited_threads(2 * WORK_PER_THREAD):
            assert torch.get_num_threads() == 2
            _ = 1 / 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_one_picture_of_the_included_model_is_computed_by_one_thread_whatever_there_are() -> None:
    kandinsky, before, counts = Kandinsky.load(), torch.get_num_threads(), set()
    request = text2img("a red circle", seed=1, num_inference_steps=2, prior_num_inference_steps=2)
    pictures = []
    for stage in (kandinsky.prior.network, kandinsky.decoder("decoder").unet):
        stage.register_forward_pre_hook(lambda *_: counts.add(torch.get_num_threads()))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            pictures += kandinsky(request)
    finally:
        torch.set_num_threads(before)
    assert counts == {1}
    assert pictures[0].image.tobytes() == pictures[1].image.tobytes()


def test_waiting_threads_sleep_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize("start", ["kandinsky22.cli.app", "kandinsky22.backends.worker"])
def test_what_sets_the_policy_imports_no_torch_before(start: str) -> None:
    code = f"import sys, {start}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
