#!/bin/bash
# sbatch recipes/accelerate/slurm.sh recipes/diffbir_one_step.py --config recipes/configs/diffbir_one_step_paper.yaml
#
# Two machines with eight GPUs each. Five minutes before its time is over the job is told to stop: the run saves and
# ends, and the job, back in the queue, goes on from there with the same command.
#SBATCH --job-name=milo-restore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log

set -euo pipefail
: "${1:?name a recipe and its arguments}"

GPUS=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))
HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export GPUS HOST OMP_NUM_THREADS=1

code=0
# $SLURM_NODEID is each machine's own: it is read there, not here.
srun --kill-on-bad-exit=1 bash -c 'accelerate launch \
    --config_file recipes/accelerate/several_machines.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$GPUS" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$HOST" --main_process_port 29500 "$@" --resume latest' milo-restore "$@" || code=$?

# 143 is a run that was stopped by TERM after it had saved.
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
