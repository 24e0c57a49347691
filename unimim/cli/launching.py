"""Commands that start runs elsewhere: launch slurm."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from ..engine.slurm import SIGNALS
from ..terminal import clean
from .console import remark, say
from .errors import Failed, Problems
from .inputs import Data, check_out, read_recipe, run_options, split_changes
from .running import Out

WARNING = 120
"""Seconds before the end of the job at which the run is told to save and stop."""
app = typer.Typer(help="Start a run on a cluster.")


@app.callback(invoke_without_command=True)
def launch(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(
    "slurm", epilog="Example: unimim launch slurm mae --data /data/imagenet --out /runs/mae --nodes 8 --gpus-per-node 8"
)
def slurm(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name from unimim list recipes, or a YAML file.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes, e.g. loss=l1 epochs=5.", show_default=False),
    ] = None,
    data: Data = "",
    out: Out = None,
    nodes: Annotated[int, typer.Option(metavar="N", min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(metavar="G", min=1, help="GPUs, and processes, on each.")] = 1,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Loader processes for each GPU.")] = 8,
    micro_batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images a GPU takes at once.", show_default="its whole share")
    ] = None,
    time: Annotated[
        str, typer.Option(metavar="T", help="Time limit, e.g. 1-12:00:00.", show_default="the partition's")
    ] = "",
    partition: Annotated[str, typer.Option(metavar="P", show_default="the cluster's")] = "",
    submit: Annotated[bool, typer.Option("--submit", help="Hand it to sbatch instead of printing it.")] = False,
) -> None:
    """Print (or submit) a batch script that trains over many machines.

    Preempted or out of time, the run saves, and the job puts itself back into the queue and goes on.
    """
    problems = Problems()
    of_recipe, of_run = split_changes(changes or [])
    found = read_recipe(problems, recipe, of_recipe)
    run_options(problems, out, 1, of_run)
    if found and found.batch % (nodes * gpus_per_node):
        problems.add(f"--nodes, --gpus-per-node: batch {found.batch} does not divide over {nodes * gpus_per_node} GPUs")
    if not data:
        problems.add("--data is missing: a folder of images, a .zip or shapes, as the nodes see it")
    check_out(problems, out)
    if time and not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", time):
        problems.add(f"--time: {time!r} is none of Slurm's forms, e.g. 90 (minutes), 12:00:00 or 1-12:00:00")
    if not re.fullmatch(r"[\w.,-]*", partition):
        problems.add(f"--partition: {partition!r} is no name of a partition")
    if submit and not shutil.which("sbatch"):
        problems.add("--submit: there is no sbatch on this machine; without --submit the script is printed")
    words = [recipe, *(changes or []), data, str(out)]
    problems.found += [f"{word!r} holds control characters" for word in words if clean(word) != word]
    problems.refuse()
    assert found is not None
    assert out is not None
    train = ["train", recipe, *(changes or []), "--data", data, "--out", str(out), "--workers", str(workers)]
    train += ["--micro-batch", str(micro_batch)] if micro_batch else []
    text = script(train, found.name, out, nodes, gpus_per_node, 1 + workers, time, partition)
    if submit:
        _submit(text)
    else:
        say(text)


def script(
    train: list[str], name: str, out: Path, nodes: int, gpus: int, cpus: int, time: str = "", partition: str = ""
) -> str:
    """The batch script of `unimim TRAIN` into the folder `out`; cpus: of each GPU. It runs in the folder of submission."""
    limits = [f"#SBATCH --time={time}"] * bool(time) + [f"#SBATCH --partition={partition}"] * bool(partition)
    return SCRIPT.substitute(
        name=re.sub(r"[^\w.-]", "_", f"unimim-{name}"),
        nodes=nodes,
        gpus=gpus,
        cpus=gpus * cpus,
        limits="".join(f"{line}\n" for line in limits),
        warning=WARNING,
        signals=SIGNALS,
        status=shlex.quote(str(out / "status.json")),
        train=shlex.join(train),
    )


SCRIPT = Template(r"""#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
${limits}#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@$warning

# torchrun ends with 1 whether the run was preempted or failed: which of them stands in the run folder.
status=$status
before=$$(cat "$$status" 2>/dev/null)
head=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
port=$$((20000 + SLURM_JOB_ID % 10000))

if srun --wait=60 torchrun \
  --nnodes $nodes --nproc-per-node $gpus --max-restarts 0 \
  --rdzv-id "$$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$$head:$$port" \
  --signals-to-handle $signals \
  -m unimim $train
then
  ended=done
elif [ "$$(cat "$$status" 2>/dev/null)" = "$$before" ]; then  # that of an earlier attempt
  ended=failed
else
  ended=$$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$$status")
fi
echo "job $$SLURM_JOB_ID: $$ended"
case "$$ended" in
  done) exit 0 ;;
  preempted) scontrol requeue "$$SLURM_JOB_ID" && exit 0 || exit 75 ;;
  *) exit 1 ;;
esac
""")


def _submit(text: str) -> None:
    done = subprocess.run(["sbatch"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"sbatch refused the script: {done.stderr.strip() or done.stdout.strip()}")
    if done.stderr.strip():
        remark(done.stderr.strip())
    say(done.stdout.strip(), "green")
