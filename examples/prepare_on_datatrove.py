"""Prepares a store by three datatrove pipelines: survey, shards, store. On Slurm, put SlurmPipelineExecutor for Local.

python examples/prepare_on_datatrove.py /data/part-0.csv /data/part-1.csv --out /stores/train --tokenizer roberta-base
"""

import argparse

from datatrove.executor import LocalPipelineExecutor

from penstock.engine.data.on_datatrove import Begin, Finalize, WriteShards
from penstock.engine.data.store import Store

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("sources", nargs="+", help="files that every machine can read")
parser.add_argument("--out", required=True, help="a folder that every machine can write to")
parser.add_argument("--tokenizer", required=True)
parser.add_argument("--rows-per-shard", type=int, help="a task makes whole shards: smaller ones spread over more tasks")
parser.add_argument("--tasks", type=int, default=2)
parser.add_argument("--logs", help="datatrove's; a task that is marked done there does not run again")

if __name__ == "__main__":
    options = parser.parse_args()
    logs = options.logs or f"{options.out}.logs"
    begin = Begin(options.sources, options.out, tokenizer=options.tokenizer, rows_per_shard=options.rows_per_shard)
    survey = LocalPipelineExecutor([begin], logging_dir=f"{logs}/survey")
    shards = LocalPipelineExecutor(
        [WriteShards(options.out)], tasks=options.tasks, logging_dir=f"{logs}/shards", depends=survey
    )
    LocalPipelineExecutor([Finalize(options.out)], logging_dir=f"{logs}/store", depends=shards).run()
    print(Store.open(options.out))
