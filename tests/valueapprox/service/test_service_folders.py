"""Folders that versions 0.1 and 0.2 wrote: they are opened, what their journals hold is learned, learning continues.

A service of two predictions with two traces learned seven transitions each of streams a, b and c and wrote a
checkpoint; learned five more of a; had its weights halved; learned three more of c; and was killed. Both versions
learned the same bits, which weights.npy holds.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from valueapprox.service import Service, Transitions
from valueapprox.service.messages import DUPLICATE, LEARNED

FOLDERS = Path(__file__).with_name("folders")


def transitions(stream, first, n):
    t = np.arange(first, first + n)
    state = lambda t: np.stack([np.sin(t), np.cos(t)], 1)  # noqa: E731
    return Transitions.of(stream, first, state(t), np.stack([t % 3, t % 2], 1), state(t + 1.0), t % 5 == 4)


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_a_folder_of_an_earlier_version_is_continued(tmp_path, version):
    folder = tmp_path / "service"
    shutil.copytree(FOLDERS / f"version-{version}", folder)
    with Service.open(folder) as service:
        assert service.version == 30  # 7 + 7 + 7 + 5 + 1 + 3
        assert "8 transitions were learned again" in service.notices[0]
        # Other processors may round otherwise.
        np.testing.assert_allclose(service.weights().w, np.load(FOLDERS / "weights.npy"), rtol=1e-5, atol=1e-7)
        settings = service.settings
        assert (settings.net.sizes, settings.names, settings.max_streams) == ((2, 4, 2), ("soon", "late"), 2)
        for stream, n_known in (("a", 12), ("b", 7), ("c", 10)):
            result = service.learn(transitions(stream, 0, n_known + 2))
            assert result.status.tolist() == [DUPLICATE] * n_known + [LEARNED] * 2
        w = service.weights().w
    with Service.open(folder) as again:
        assert (again.version, again.notices) == (36, [])
        np.testing.assert_array_equal(again.weights().w, w)
    Service.from_checkpoint(FOLDERS / f"version-{version}").close()
