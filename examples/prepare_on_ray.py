"""Prepares a store on a Ray cluster (RAY_ADDRESS says which; without it, on this machine).

python examples/prepare_on_ray.py /data/part-0.csv /data/part-1.csv --out /stores/train --tokenizer roberta-base
"""

import argparse

from penstock.engine.data.on_ray import prepare_on_ray

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("sources", nargs="+", help="files that every node can read")
parser.add_argument("--out", required=True, help="a folder that every node can write to")
parser.add_argument("--tokenizer", required=True)
parser.add_argument("--rows-per-shard", type=int, help="a task makes whole shards: smaller ones spread over more tasks")
parser.add_argument("--tasks", type=int, help="by default one for each processor of the cluster")

if __name__ == "__main__":
    options = parser.parse_args()
    store = prepare_on_ray(
        options.sources,
        options.out,
        tokenizer=options.tokenizer,
        rows_per_shard=options.rows_per_shard,
        tasks=options.tasks,
    )
    print(store)
