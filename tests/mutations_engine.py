"""Faults of engine/ that the tests must find: what is wrong, where, the sound text, the planted one, the tests.

The place is a file, or a folder that has the text once in one of its files; the tests are files in tests/engine,
which run until one fails.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    what: str
    where: str
    text: str
    planted: str
    tests: str


FAULTS = [
    # data
    Fault(
        "the loader drops the last batch of a step",
        "engine",
        "batches = [next(made) for _ in range(width)]",
        "batches = [next(made) for _ in range(width)][: max(width - 1, 1)]",
        "test_loader.py",
    ),
    Fault(
        "an epoch's last, partial step is dropped",
        "engine",
        "yield step\n\n",
        "if index < plan.num_steps - 1 or plan.num_steps == 1:\n                yield step\n\n",
        "test_loader.py",
    ),
    Fault(
        "going on repeats a step",
        "engine",
        'self.seek(state["epoch"], state["step"])',
        'self.seek(state["epoch"], max(state["step"] - 1, 0))',
        "test_loader.py test_torch_dataset.py",
    ),
    Fault(
        "the order is the same whatever the seed",
        "engine",
        "self.seed,\n                epoch,",
        "0,\n                epoch,",
        "test_loader.py",
    ),
    Fault(
        "a plan does not know how texts are cut",
        "engine",
        '**({} if cut is None else {"cut": cut.to_json()}),',
        "**{},",
        "test_cut.py",
    ),
    Fault(
        "a test store is read whole, whatever the run reads",
        "engine",
        'return store.cut_to(data["max_length"], data["truncation"])',
        "return store",
        "test_reading.py",
    ),
    Fault(
        "ranks read the same batches",
        "engine",
        "self.parameters.batches_per_step + self.rank, plan",
        "self.parameters.batches_per_step, plan",
        "test_loader.py",
    ),
    Fault(
        "a shard's labels are shifted by a row",
        "engine",
        "columns = [tokens, pa.array(rows.labels),",
        "columns = [tokens, pa.array(np.roll(rows.labels, 1)),",
        "test_prepare.py",
    ),
    Fault(
        "a pair is cut at its beginning instead of its end",
        "engine",
        'direction = "left" if truncation == "tail" else "right"',
        'direction = "right"',
        "test_pairs.py",
    ),
    Fault(
        "a saved tokenizer forgets the side that it cuts",
        "engine",
        'tokenizer.truncation_side = tokenizer.init_kwargs["truncation_side"] = side',
        'tokenizer.init_kwargs["truncation_side"] = side',
        "test_tokenizer_settings.py",
    ),
    Fault(
        "a file gets its name before its bytes are on the disk",
        "engine",
        "flush(self._file, self.path)",
        "pass",
        "test_faults.py",
    ),
    Fault(
        "a cut leaves out the end that it should keep",
        "engine/data",
        "return np.minimum(stored, np.int32(self.length))",
        "return np.minimum(stored, np.int32(self.head))",
        "test_cut.py",
    ),
    Fault(
        "a first line in capitals names no separator",
        "engine/data",
        're.compile(r\'"?sep=(?P<separator>[^"\\r\\n])"?[\\r\\n]+\', re.IGNORECASE)',
        're.compile(r\'"?sep=(?P<separator>[^"\\r\\n])"?[\\r\\n]+\')',
        "test_text_files.py",
    ),
    # training
    Fault(
        "what is kept of longer texts is stated in vain",
        "engine/training",
        "    elif length == WHOLE:\n        raise ConfigError(",
        "    elif length is None:\n        raise ConfigError(",
        "test_reading.py",
    ),
    Fault(
        "a record's checksum is not compared",
        "engine",
        'if record.get("crc32") != _checksum(rest):',
        "if False:",
        "test_run_directory.py test_injection.py",
    ),
    Fault(
        "a seal of a later version is taken for one of this",
        "engine",
        'if content["format"] != _FORMAT:',
        'if content["format"] < _FORMAT:',
        "test_injection.py",
    ),
    Fault(
        "a signal that comes when all is done is forgotten",
        "engine/training",
        "raise self.interrupted() from error",
        "pass",
        "test_signals.py",
    ),
    Fault(
        "a chip's name that begins with a known one's has its peak",
        "engine/training",
        "if candidate in _PEAK_TFLOPS:",
        "candidate = next((key for key in _PEAK_TFLOPS if candidate.startswith(key)), candidate)\n"
        "        if candidate in _PEAK_TFLOPS:",
        "test_flops.py",
    ),
    Fault(
        "batches hold twice the tokens that were asked for",
        "engine",
        "tokens_per_batch=tokens_per_batch, batches_per_step=data.batches_per_step",
        "tokens_per_batch=2 * tokens_per_batch, batches_per_step=data.batches_per_step",
        "test_train.py",
    ),
    Fault(
        "raw texts go to the model in batches that are too large",
        "engine",
        "if used + cost > tokens_per_batch and place > start:",
        "if used > tokens_per_batch and place > start:",
        "test_texts.py",
    ),
    Fault(
        "the last batch of raw texts is dropped",
        "engine",
        "if start < len(order):",
        "if start == 0:",
        "test_cli_predict.py",
    ),
    Fault(
        "a run's last line of metrics is lost",
        "engine",
        "training.log_every_steps == 0 or bool(counters.stopped_by)",
        "training.log_every_steps == 0",
        "test_train.py",
    ),
    Fault(
        "the optimizer starts afresh where a run goes on",
        "engine",
        'self._optimizer.load_state_dict({"state": kept, "param_groups": groups})',
        "pass",
        "test_train.py",
    ),
    Fault(
        "a run that goes on begins its order again",
        "engine",
        'self._loader.load_state_dict(checked_loader_state(state.get("loader"), self.counters))',
        "pass",
        "test_train.py",
    ),
    Fault(
        "dropout does not follow the run's seed",
        "engine",
        'derive_seed(self._settings.seed, "step", step,',
        'derive_seed("step", step,',
        "test_step.py test_train.py",
    ),
    Fault(
        "every evaluation is the best one",
        "engine",
        "best = metrics.better_than(counters.best, training.metric)",
        "best = True",
        "test_train.py",
    ),
    Fault(
        "predictions stand in the order of their lengths",
        "engine",
        "scores[places[batch.tokens.ids.cpu().numpy()]] =",
        "scores[places[np.sort(batch.tokens.ids.cpu().numpy())]] =",
        "test_cli_predict.py",
    ),
    Fault(
        "rows without a text move to the end of a part",
        "engine",
        'places[np.argsort(positions, kind="stable")] = np.arange(len(positions))',
        "places[:] = np.arange(len(positions))",
        "test_cli_predict.py",
    ),
    Fault(
        "a checkpoint's checksums are not compared",
        "engine",
        'if crc32_of(file) != entry["crc32"]:',
        "if False:",
        "test_injection.py",
    ),
    Fault(
        "a checkpoint is no copy: the next step changes it while it is written",
        "engine",
        "        buffer.copy_(tensor)\n",
        "        buffer = tensor\n",
        "test_resume.py",
    ),
    Fault(
        "the optimizer's tensors may have any shape",
        "engine",
        "if tuple(tensor.shape) != shape:",
        "if False:",
        "test_injection.py",
    ),
    Fault(
        "a checkpoint is closed to others",
        "engine",
        "            settle_modes(temporary)\n",
        "            os.chmod(temporary, 0o700)\n",
        "test_modes.py",
    ),
    Fault(
        "micro-F1 of lists of labels is taken at a half",
        "engine",
        "chosen = ranked >= self._thresholds[order]",
        "chosen = ranked >= 0.5",
        "test_multi_label.py",
    ),
    # models
    Fault(
        "a fused layer does not see a backward hook",
        "engine",
        'or state["_backward_hooks"]',
        "",
        "test_stock.py",
    ),
    # statistics
    Fault(
        "a margin that is just held is not",
        "engine/statistics",
        'return "no worse" if low >= -margin else "cannot tell"',
        'return "no worse" if low >= 0 else "cannot tell"',
        "test_answer.py test_compare.py test_resample.py",
    ),
    # study
    Fault(
        "n-grams run from one text into the next",
        "engine/study",
        "& heard[size - 1 :] & (row[: len(last)] == row[size - 1 :])",
        "& heard[size - 1 :]",
        "test_baselines.py",
    ),
    Fault(
        "n-grams hold special tokens",
        "engine/study",
        "whole[: len(last)] & heard[size - 1 :]",
        "whole[: len(last)]",
        "test_baselines.py",
    ),
    Fault(
        "a class that no training row has takes another one's scores",
        "engine/study",
        "every[:, self.classes] = logits",
        "every[:, : logits.shape[1]] = logits",
        "test_baselines.py",
    ),
    Fault(
        "an interval of one seed decides as one of several does",
        "engine/study",
        "_ONE_SEED = 2.0",
        "_ONE_SEED = 1.0",
        "test_budget.py",
    ),
    Fault(
        "a trial is begun that does not end in time",
        "engine/study",
        "return sum(self.seconds[trial] for trial in trials) <= self.left",
        "return sum(self.seconds[trial] for trial in trials) <= 2 * self.left",
        "test_budget.py",
    ),
    Fault(
        "a trial whose process died is not tried again",
        "engine/study",
        "_in_order([task for task, _ in died])",
        "_in_order([])",
        "test_study.py",
    ),
    Fault(
        "subsets are the same whatever the seed",
        "engine",
        "return _derived(study_seed, 1, seed)",
        "return _derived(study_seed, 1)",
        "test_study.py",
    ),
    Fault(
        "a size's training has the seed of another size",
        "engine",
        "_derived(study.seed, 2, trial.size, trial.seed)",
        "_derived(study.seed, 2, trial.seed)",
        "test_study.py",
    ),
    Fault(
        "other test data is not noticed",
        "engine",
        '        ("the test data", then.test, now.test),\n',
        "",
        "test_made_from.py",
    ),
]
