"""Chat templates of our own, each with the structure of a family of published ones: roles, control tokens, how system
texts, tools, calls and thinking are written, what is dropped from earlier turns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """control: tokens of its own. bos, eos: as templates see them. system, tools, thinking: what it can write."""

    text: str
    control: tuple[str, ...]
    bos: str
    eos: str
    system: bool = True
    tools: bool = False
    thinking: bool = False
    values: dict[str, object] = field(default_factory=dict)


CHATML = """
{%- for m in messages %}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

# Tools in the system turn, calls as JSON between tags, results of several tools in one user turn.
QWEN2 = """
{%- set first = messages[0].content if messages[0].role == 'system' else 'Help the user.' %}
{{- '<|im_start|>system\\n' + first }}
{%- if tools %}
{{- '\\n\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant' }}
{%- if m.content %}{{ '\\n' + m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif not (loop.first and m.role == 'system') %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Thinking before the answer, kept since the last question alone; `enable_thinking=false` closes it in the prompt.
QWEN3 = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{- '<tools>' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'user' %}
{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- content.lstrip('\\n') }}
{%- for call in m.tool_calls or [] %}
{%- if loop.index0 or content %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- if call.function.arguments is string %}{{ call.function.arguments }}
{%- else %}{{ call.function.arguments | tojson }}{% endif %}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

# The system text inside the first question; each question opens a sequence of its own.
LLAMA2 = """
{%- if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}
"""

# Headers; the date in the system turn; one call a turn, as JSON.
LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n' }}
{%- if tools is not none %}{% for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n' }}{% endfor %}{% endif %}
{%- if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}
{{- '<|eot_id|>' }}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}
{%- elif 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call a turn') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson }}{{ '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

# Tools and the system text before the last question: both move as the conversation grows.
MISTRAL3 = """
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- set turns = messages[1:] if system is not none else messages %}
{%- set asked = turns | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for m in turns %}
{%- if m.role == 'user' %}
{%- if tools and m == asked[-1] %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + (system + '\\n\\n' if system is not none and m == asked[-1] else '') + m.content + '[/INST]' }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + (m.content | tojson) + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- elif m.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- ', "id": "' + call.id + '"}' }}{{ ', ' if not loop.last else '' }}
{%- endfor %}
{{- ']' + eos_token }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}
"""

# The assistant is called model; no system turn.
GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{%- for m in messages %}
{%- set role = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

# A conversation that is not continued ends with a token of its own.
PHI3 = """
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

# Thinking in the answer's text, left out of every finished turn; calls between tokens of their own.
DEEPSEEK = """
{{- bos_token }}
{%- for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|User|>' + m.content + '<|Assistant|>' }}
{%- elif m.role == 'tool' %}
{{- '<|output_begin|>' + m.content + '<|output_end|>' }}
{%- elif m.role == 'assistant' %}
{%- if m.content %}{{ m.content.split('</think>')[-1] }}{% endif %}
{%- for call in m.tool_calls or [] %}
{{- '<|call_begin|>' + call.function.name + '\\n' + (call.function.arguments | tojson) + '<|call_end|>' }}
{%- endfor %}
{{- eos_token }}
{%- endif %}
{%- endfor %}
"""

ZEPHYR = """
{%- for m in messages %}
{{- '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
{%- endfor %}
"""

# Calls and results have names of their own inside ordinary turns; thinking is kept in every turn.
INTERNLM = """
{{- bos_token }}
{%- for m in messages %}
{%- if loop.first and tools %}
{{- '<|im_start|>system name=<|plugin|>\\n' + (tools | tojson(indent=2)) + '<|im_end|>\\n' }}
{%- endif %}
{%- if m.role == 'tool' %}
{{- '<|im_start|>environment name=<|plugin|>\\n' + m.content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>\\n' }}{% endif %}
{{- m.content or '' }}
{%- for call in m.tool_calls or [] %}
{{- '<|action_start|><|plugin|>\\n{"name": "' + call.function.name + '", "parameters": ' }}
{{- (call.function.arguments | tojson) + '}<|action_end|>\\n' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Channels: thinking and answer are messages of their own; the last answer and a call end with tokens of their own.
HARMONY = """
{%- macro say(role, channel, text, end) %}
{{- '<|start|>' + role + ('<|channel|>' + channel if channel else '') + '<|message|>' + text + end }}
{%- endmacro %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}{{ say('developer', '', tools | tojson, '<|end|>') }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- if m.thinking and loop.index0 > ns.last %}{{ say('assistant', 'analysis', m.thinking, '<|end|>') }}{% endif %}
{%- if m.tool_calls %}
{%- set call = m.tool_calls[0].function %}
{{- say('assistant', 'commentary to=functions.' + call.name, call.arguments | tojson, '<|call|>') }}
{%- else %}
{{- say('assistant', 'final', m.content, '<|return|>' if loop.last and not add_generation_prompt else '<|end|>') }}
{%- endif %}
{%- elif m.role == 'tool' %}{{ say('functions', 'commentary', m.content, '<|end|>') }}
{%- else %}{{ say(m.role, '', m.content, '<|end|>') }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
"""

# Names in plain text; only the answer ends with a token.
VICUNA = """
{%- if messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% set messages = messages[1:] %}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ 'USER: ' + m.content }}
{%- else %}{{ ' ASSISTANT: ' + m.content + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}
"""

IM = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "chatml": Family(CHATML, IM, "<|endoftext|>", "<|im_end|>"),
    "qwen2": Family(QWEN2, IM, "<|endoftext|>", "<|im_end|>", tools=True),
    "qwen3": Family(QWEN3, IM, "<|endoftext|>", "<|im_end|>", tools=True, thinking=True),
    "llama2": Family(LLAMA2, (), "<s>", "</s>"),
    "llama3": Family(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|text|>", "<|eot_id|>",
                     tools=True, values={"date_string": "01 Dec 2026"}),
    "mistral3": Family(MISTRAL3, ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
                                  "[TOOL_RESULTS]", "[/TOOL_RESULTS]"), "<s>", "</s>", tools=True),
    "gemma": Family(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", system=False),
    "phi3": Family(PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<s>", "<|endoftext|>"),
    "deepseek": Family(DEEPSEEK, ("<|User|>", "<|Assistant|>", "<|call_begin|>", "<|call_end|>", "<|output_begin|>",
                                  "<|output_end|>"), "<|sos|>", "<|eos|>", tools=True),
    "zephyr": Family(ZEPHYR, (), "<s>", "</s>"),
    "internlm": Family(INTERNLM, (*IM, "<|plugin|>", "<|action_start|>", "<|action_end|>"), "<s>", "</s>", tools=True,
                       thinking=True),
    "harmony": Family(HARMONY, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
                      "<|startoftext|>", "<|return|>", tools=True, thinking=True),
    "vicuna": Family(VICUNA, (), "<s>", "</s>"),
}  # fmt: skip

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "boiling_point",
            "description": "Looks up <a boiling point> & more",
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    }
]


def call(name: str, arguments: dict[str, object], number: str = "call00001") -> dict[str, object]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def conversations(family: Family) -> dict[str, tuple[list[dict[str, object]], list[dict[str, object]] | None]]:
    """Conversations that a family can write, with their tools, by name."""
    system = [{"role": "system", "content": "Answer in units of SI."}] if family.system else []
    ask = {"role": "user", "content": "At what temperature does ethanol boil, in \u00b0C?"}
    answer = {"role": "assistant", "content": "At 78.4 \u00b0C \u2014 that is 351.5 K."}
    more = [{"role": "user", "content": "And \u6c34?"}, {"role": "assistant", "content": "Water: 100 \u00b0C."}]
    found: dict[str, tuple[list[dict[str, object]], list[dict[str, object]] | None]] = {
        "one": ([ask, answer], None),
        "system": ([*system, ask, answer], None),
        "several": ([*system, ask, answer, *more, *more], None),
    }
    if family.thinking:
        thinks = {**answer, "reasoning_content": "Ethanol is C2H5OH; its table says 351.5 K."}
        found["thinking"] = ([*system, ask, thinks, *more], None)
        found["thinks last"] = ([ask, answer, more[0], {**more[1], "reasoning_content": "Easy."}], None)
    if family.tools:
        asks = {"role": "assistant", "content": None, "tool_calls": [call("boiling_point", {"name": "ethanol"})]}
        result = {"role": "tool", "content": '{"K": 351.5}', "tool_call_id": "call00001"}
        found["tools"] = ([*system, ask, asks, result, answer], TOOLS)
        found["calls last"] = ([*system, ask, answer, more[0], asks], TOOLS)
        if family.thinking:
            found["thinks and calls"] = (
                [*system, ask, {**asks, "reasoning_content": "Look it up."}, result,
                 {**answer, "reasoning_content": "351.5 - 273.15."}, *more], TOOLS,
            )  # fmt: skip
    return found
