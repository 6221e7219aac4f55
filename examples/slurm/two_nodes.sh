#!/bin/bash
# Two nodes with 8 GPUs each; put back into the queue at the time limit, where it goes on from its last checkpoint.
#   sbatch examples/slurm/two_nodes.sh --config CONFIG --data.root FOLDER
#SBATCH --job-name=trunkline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append

export OMP_NUM_THREADS=1
# A task for each GPU: srun starts the processes, and ends all if one fails.
srun --kill-on-bad-exit=1 trunkline fit --resume auto \
    --trainer.default_root_dir "runs/job_$SLURM_JOB_ID" \
    --trainer.devices 8 --trainer.num_nodes 2 --trainer.strategy ddp "$@"
