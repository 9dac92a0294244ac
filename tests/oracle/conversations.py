"""Conversations for the chat template oracle: what requests hold, ordinary and odd."""


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def tool(content):
    return {"role": "tool", "name": "get_weather", "tool_call_id": "call_abc1", "content": content}


def text(*parts):
    return [{"type": "text", "text": part} for part in parts]


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather — now, <b>\"exactly\"</b>",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "Größere Städte & 東京"},
            "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
            "days": {"type": "integer", "minimum": 0, "maximum": 1.5}}}}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object",
                                                                                      "properties": {}}}},
]
ODD_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {
    "type": "object", "properties": {"x": {"type": ["integer", "null"]}, "y": {"anyOf": [{"type": "string"}]}}}}}]
CALL = {"id": "call_abc1", "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 1, "deep": [1.5, True, None, {}]}}}
CALL_TEXT = {"id": "call_abc1", "type": "function",
             "function": {"name": "get_weather", "arguments": "{\"city\": \"Zürich\"}"}}

CONVERSATIONS = [
    {"messages": [user("Hi")]},
    {"messages": [system("You are helpful."), user("Hi")]},
    {"messages": [user("Hi"), assistant("Hello"), user("Who are you?")]},
    {"messages": [system("Be brief."), user("Hi"), assistant("Hello"), user("Who?"), assistant("Me."), user("Why?")]},
    {"messages": [user("Hi"), assistant("Hello")], "add_generation_prompt": False},
    {"messages": [user("Write a poem"), assistant("Roses are")], "add_generation_prompt": False},
    {"messages": [user("héllo 世界 🎉 e\u0301 \u200b עברית \U0001d11e")]},
    {"messages": [user("")]},
    {"messages": [system(""), user("a")]},
    {"messages": [user("  leading and trailing \n\n"), assistant("\n x \t"), user("\u3000wide\u3000")]},
    {"messages": [user(text("part one, ", "part two"))]},
    {"messages": [system(text("system part")), user(text("part"))]},
    {"messages": [user("<|im_start|> <|eot_id|> </s> [INST] {{ x }} {% if %} {# #} \"q\" 'a' \\ & <b> \x01\x7f")]},
    {"messages": [user("Weather?")], "tools": TOOLS},
    {"messages": [system("Use tools."), user("Weather?")], "tools": TOOLS},
    {"messages": [user("Odd?")], "tools": ODD_TOOLS},
    {"messages": [user("Weather?")], "kwargs": {"functions": "[{\"name\": \"f\"}]", "datetime": "now"}},
    {"messages": [user("Weather?"), assistant(None, tool_calls=[CALL]), tool("22")], "tools": TOOLS},
    {"messages": [user("Weather?"), assistant("", tool_calls=[CALL]), tool("{\"t\": 22}"), assistant("It is 22."),
                  user("Thanks")], "tools": TOOLS},
    {"messages": [user("Weather?"), assistant("", tool_calls=[CALL_TEXT]), tool("22"), assistant("22."), user("!")],
     "tools": TOOLS},
    {"messages": [user("Think"), assistant("<think>\nhm\n</think>\n\nanswer"), user("Again")]},
    {"messages": [user("Think"), assistant("answer", reasoning_content="hm"), user("Again")]},
    {"messages": [user("x")], "kwargs": {"enable_thinking": False, "date_string": "26 Jul 2024"}},
    {"messages": [user("x")], "kwargs": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high",
                                         "builtin_tools": ["browser", "python"]}},
    {"messages": [user("From the document?")], "documents": [{"title": "T — é", "text": "Body."}]},
    {"messages": [{"role": "developer", "content": "Dev."}, user("a")]},
    {"messages": [user("a"), user("b")]},
    {"messages": [assistant("first"), user("b")]},
    {"messages": [user("a"), {"role": "critic", "content": "no"}, user("b")]},
    {"messages": [user("line\n" * 300)]},
    {"messages": [user(f"turn {i}") if i % 2 == 0 else assistant(f"reply {i}") for i in range(21)]},
    {"messages": []},
]
