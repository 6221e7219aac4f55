"""The scripts for SLURM, run with a stand-in of srun: their numbers agree, and Lightning accepts them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from lightning_fabric.plugins.environments import SLURMEnvironment

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples/slurm").glob("*.sh"))


def words_of(script, tmp_path):
    """What the script would start, by a stand-in that prints its arguments."""
    for name, line in (
        ("srun", 'printf "%s\\n" "$@"'),
        ("scontrol", "echo node1; echo node2"),
        ("trunkline", ""),
    ):
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{line}\n")
        program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", script, "--config", "a config.yaml"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_sbatch_asks_for_is_what_the_command_uses(script, tmp_path, monkeypatch):
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", script.read_text(), re.MULTILINE))
    words = words_of(script, tmp_path)
    option = {
        name: words[words.index(f"--trainer.{name}") + 1] for name in ("devices", "num_nodes", "strategy")
    }
    assert option == {"devices": asked["gpus-per-node"], "num_nodes": asked["nodes"], "strategy": "ddp"}
    assert words[-2:] == ["--config", "a config.yaml"] and "--kill-on-bad-exit=1" in words
    start = words.index("fit")
    assert words[start + 1 : start + 3] == ["--resume", "auto"] and words[start - 1].endswith("trunkline")
    if "torchrun" in words:
        assert asked["ntasks-per-node"] == "1" and "node1:29500" in words
        assert words[words.index("--nproc-per-node") + 1] == option["devices"]
        return
    assert asked["signal"] == "SIGUSR1@180" and "requeue" in asked
    settings = {
        "SLURM_NTASKS": str(int(asked["nodes"]) * int(asked["ntasks-per-node"])),
        "SLURM_NTASKS_PER_NODE": asked["ntasks-per-node"], "SLURM_NNODES": asked["nodes"],
        "SLURM_JOB_NAME": "trunkline", "SLURM_JOB_ID": "77",
        "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NODELIST": "node[1-2]",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert SLURMEnvironment.detect()
    found = SLURMEnvironment()
    found.validate_settings(int(option["devices"]), int(option["num_nodes"]))
    assert (found.global_rank(), found.local_rank(), found.node_rank()) == (9, 1, 1)
    assert found.world_size() == int(option["devices"]) * int(option["num_nodes"])


def test_the_page_has_a_job_for_kubernetes_that_asks_for_what_it_uses():
    page = (ROOT / "docs/clusters.md").read_text()
    job = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert f"--trainer.num_nodes {worker['replicas']} " in container["args"][0]
    devices = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--trainer.devices {devices} " in container["args"][0] and job["spec"]["nprocPerNode"] == str(
        devices
    )
