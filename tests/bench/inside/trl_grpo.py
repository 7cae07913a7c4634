"""Steps of TRL's GRPO trainer by its plain path, transformers' generate. Runs in an environment of its own and imports
nothing of ours: python trl_grpo.py, with JSON of `tests.bench.rl_trl.Spec` on its first line of input.

After every step it prints a line of JSON with the CPU-seconds of the step by part, and waits for a line.
"""

import ctypes
import json
import os
import sys
import time

given = json.loads(sys.stdin.readline())
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print
if given["keep_memory"]:
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    libc = ctypes.CDLL(None)
    if libc.mallopt(-3, 2**31 - 1) or libc.mallopt(-3, 32 << 20):
        libc.mallopt(-1, 2**31 - 1)

import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
seconds = {}


def timed(name, function):
    def call(*args, **options):
        started = time.process_time()
        found = function(*args, **options)
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
        return found

    return call


class Turns(TrainerCallback):
    """A step at a time; `logging_steps` is 1."""

    def __init__(self):
        self.before = time.process_time()

    def on_log(self, args, state, control, logs=None, **more):
        if "reward" not in logs:
            return
        whole = time.process_time() - self.before
        scored = seconds.pop("scored")
        rollout, reward = seconds.pop("rollout"), seconds.pop("reward")
        parts = {"rollout": rollout, "reward": reward, "train": whole - scored, "rest": scored - rollout - reward}
        tokens = round(logs["completions/mean_length"] * given["rollouts"])
        line = {name: float(logs[name]) for name in ("reward", "entropy", "grad_norm")}
        line |= {"cpu_s": whole, "parts": parts, "tokens": tokens, "trained": tokens}
        print(json.dumps(line), file=out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.before = time.process_time()


def overlap(completions, answer, **more):
    """The share of places with the right character."""
    return [
        sum(a == b for a, b in zip(wanted, said)) / max(len(wanted), len(said))  # noqa: B905
        for said, wanted in zip(completions, answer, strict=True)
    ]


END = "<|endofdocument|>"
# <|never|> gets an id that the model does not have, so that every answer is as long as the longest
tokenizer = PreTrainedTokenizerFast(
    tokenizer_file=given["tokenizer"], eos_token=END if given["ends"] else "<|never|>", pad_token=END,
    padding_side="left",
)  # fmt: skip
model = AutoModelForCausalLM.from_pretrained(
    given["model"], dtype=torch.float32, attn_implementation="sdpa", experts_implementation="grouped_mm"
)
assert given["ends"] == (tokenizer.eos_token_id < model.config.vocab_size)
steps = len(given["questions"]) // given["prompts"]
trainer = GRPOTrainer(
    model,
    reward_funcs=overlap,
    args=GRPOConfig(
        output_dir=given["directory"], use_cpu=True, bf16=False, seed=0, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_steps=1, max_steps=steps, shuffle_dataset=False,
        per_device_train_batch_size=given["rollouts"], gradient_accumulation_steps=1, gradient_checkpointing=False,
        num_generations=given["group"], max_completion_length=given["answer"], temperature=1.0,
        learning_rate=given["lr"], lr_scheduler_type="constant", optim="adamw_torch_fused", weight_decay=0.0,
        adam_beta1=given["betas"][0], adam_beta2=given["betas"][1], max_grad_norm=given["clip_norm"],
        loss_type="dapo", scale_rewards="none", beta=0.0, num_iterations=1, entropy_coef=given["entropy_coef"],
        router_aux_loss_coef=0.0,
    ),
    train_dataset=Dataset.from_list(given["questions"]),
    processing_class=tokenizer,
    callbacks=[Turns()],
)  # fmt: skip
trainer.remove_callback(transformers.PrinterCallback)
trainer._generate_single_turn = timed("rollout", trainer._generate_single_turn)
trainer._calculate_rewards = timed("reward", trainer._calculate_rewards)
trainer._generate_and_score_completions = timed("scored", trainer._generate_and_score_completions)
trainer.train()
