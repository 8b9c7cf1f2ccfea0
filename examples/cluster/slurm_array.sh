#!/bin/bash
# A prompt file on a Slurm cluster: one GPU a task, each makes its shard of the assets.
#
#     sbatch examples/cluster/slurm_array.sh prompts.txt /shared/chairs
#
# The work folder must be on storage that all nodes see. A task that is requeued after a preemption
# runs the same command: finished assets are taken as they are, and a started one continues at its
# last checkpoint. Submit the same line again to make what is missing after a failure.
#SBATCH --job-name=vp3d
#SBATCH --array=0-63
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -eu

prompts=$1
work=$2
shift 2
exec srun vp3d batch "$prompts" --work "$work" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
