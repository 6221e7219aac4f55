"""Scans, and models trained on them, for the tests of segmentation of scans."""

import pytest
from volume_tasks import QUIET, TINY, command


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Synthetic CT volumes: 4 for training, 2 for validation."""
    from trunkline.data.synthetic.scans import write_scans

    folder = tmp_path_factory.mktemp("data") / "scans"
    write_scans(folder, train=4, val=2, seed=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def trained(scans, tmp_path_factory):
    """Two checkpoints of the demo's model, after two steps each, from different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    paths = []
    with pytest.MonkeyPatch.context() as patch:
        for seed in (0, 1):
            command(
                patch,
                "fit",
                "--config",
                "scans/unet_3d_demo",
                "--data.root",
                scans,
                "--seed_everything",
                seed,
                "--trainer.default_root_dir",
                folder / str(seed),
                *TINY,
                *QUIET,
            )
            paths += folder.glob(f"{seed}/**/last.ckpt")
    return paths
