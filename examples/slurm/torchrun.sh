#!/bin/bash
# Two nodes with 8 GPUs each, where torchrun starts the processes: one task a node.
#   sbatch examples/slurm/torchrun.sh --config CONFIG --data.root FOLDER
#SBATCH --job-name=trunkline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --open-mode=append

export OMP_NUM_THREADS=1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 torchrun --nnodes 2 --nproc-per-node 8 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    "$(command -v trunkline)" fit --resume auto \
    --trainer.default_root_dir "runs/job_$SLURM_JOB_ID" \
    --trainer.devices 8 --trainer.num_nodes 2 --trainer.strategy ddp "$@"
