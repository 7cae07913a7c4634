"""Benchmarks that run code or tools of their own: their harness talks to `octavo serve`."""

from __future__ import annotations

from trainer.evaluation.suite import Suite

_WHERE = "its own harness loads them"
SUITES = (
    Suite(
        name="LCB V6",
        domain="code",
        metric="pass@1 in per cent on LiveCodeBench's release_v6",
        metric_source="LiveCodeBench/LiveCodeBench, lcb_runner (runs the programs that the model writes)",
        where_data=_WHERE,
        reported=74.3,
        harness="OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_KEY=none python -m lcb_runner.runner.main "
        "--model NAME --scenario codegeneration --release_version release_v6 --n 1 --temperature 0.8 --top_p 0.95 "
        "--max_tokens 65536 --openai_timeout 3600 --multiprocess 16 --evaluate "
        "(NAME: a LanguageModel of style OpenAIChat added to lcb_runner/lm_styles.py)",
    ),
    Suite(
        name="GAIA (text only)",
        domain="agents",
        metric="exact match of the final answer in per cent, questions without files",
        metric_source="gaia-benchmark on Hugging Face, scorer.py; inspect_evals has it as well",
        where_data=_WHERE + " (gaia-benchmark/GAIA asks for an account)",
        reported=77.4,
        harness="OCTAVO_BASE_URL=http://127.0.0.1:8000/v1 OCTAVO_API_KEY=none TAVILY_API_KEY=KEY "
        "inspect eval inspect_evals/gaia --model openai-api/octavo/NAME -T instance_ids=IDS "
        "-T web_search_providers=tavily --temperature 0.8 --top-p 0.95 --max-tokens 65536 "
        "(IDS: of the questions without a file, with commas)",
    ),
    Suite(
        name="tau2-Bench",
        domain="agents",
        metric="tasks solved in per cent (pass^1), the mean of airline, retail and telecom",
        metric_source="sierra-research/tau2-bench",
        where_data=_WHERE,
        reported=80.9,
        # the server's address is the agent's alone: OPENAI_API_BASE would send the simulated user there too
        harness="OPENAI_API_KEY=KEY tau2 run --domain airline --num-trials 4 --user-llm gpt-4.1 "
        "--agent-llm openai/NAME --agent-llm-args "
        """'{"temperature": 0.8, "api_base": "http://127.0.0.1:8000/v1", "api_key": "none"}' """
        "(and --domain retail, --domain telecom)",
    ),
)
