#!/bin/bash
# sbatch recipes/accelerate/slurm.sh recipes/diffbir_one_step.py --config recipes/configs/diffbir_one_step_paper.yaml
#
# Two machines with eight GPUs each; SLURM itself starts a process for each GPU, in place of accelerate launch. Five
# minutes before the job's time is over it tells all of them to stop: the run saves and ends with 143, and the job, back
# in the queue, goes on from there with the same command.
#SBATCH --job-name=milo-restore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log

set -euo pipefail
: "${1:?name a recipe and its arguments}"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500 WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE OMP_NUM_THREADS=1

code=0
# Each process's own numbers are read where it starts; exec: the signal reaches Python itself.
srun bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec python "$@" --resume latest' _ "$@" || code=$?
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
