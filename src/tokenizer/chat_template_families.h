#pragma once

#include <string_view>

/// Templates for checkpoints that bring none, each as the family's own reference code writes its prompts;
/// kTextOfContent belongs in front of each.
namespace nibble::tokenizer {

/// The macro `text`: content is text, or a list of parts of which the text counts.
inline constexpr std::string_view kTextOfContent = R"jinja(
{%- macro text(content) -%}
  {%- if content is string -%}{{ content }}{%- elif content is iterable -%}
    {%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%})jinja";

/// Llama 2 Chat: https://github.com/meta-llama/llama, llama/generation.py, chat_completion.
inline constexpr std::string_view kLlama2Template = R"jinja(
{%- set ns = namespace(system='', last_role='assistant') -%}
{%- for message in messages -%}
  {%- if message.role == 'system' or message.role == 'developer' -%}
    {%- if not loop.first -%}{{ raise_exception('The system message must come first.') }}{%- endif -%}
    {%- set ns.system = '<<SYS>>\n' + text(message.content) + '\n<</SYS>>\n\n' -%}
  {%- elif message.role == 'user' -%}
    {%- if ns.last_role == 'user' -%}
      {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {{- bos_token ~ '[INST] ' ~ ns.system ~ text(message.content).strip() ~ ' [/INST]' -}}
    {%- set ns.system = '' -%}
    {%- set ns.last_role = 'user' -%}
  {%- elif message.role == 'assistant' -%}
    {%- if ns.last_role != 'user' -%}
      {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {{- ' ' ~ text(message.content).strip() ~ ' ' ~ eos_token -}}
    {%- set ns.last_role = 'assistant' -%}
  {%- else -%}
    {{- raise_exception('Only user, assistant and system messages are supported.') -}}
  {%- endif -%}
{%- endfor -%}
)jinja";

/// Mistral Instruct: mistral-common's InstructTokenizerV1; a system message goes before the first user message.
inline constexpr std::string_view kMistralTemplate = R"jinja(
{{- bos_token -}}
{%- set ns = namespace(system='', last_role='assistant') -%}
{%- for message in messages -%}
  {%- if message.role == 'system' or message.role == 'developer' -%}
    {%- if not loop.first -%}{{ raise_exception('The system message must come first.') }}{%- endif -%}
    {%- set ns.system = text(message.content) + '\n\n' -%}
  {%- elif message.role == 'user' -%}
    {%- if ns.last_role == 'user' -%}
      {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {{- ' [INST] ' + ns.system + text(message.content) + ' [/INST]' -}}
    {%- set ns.system = '' -%}
    {%- set ns.last_role = 'user' -%}
  {%- elif message.role == 'assistant' -%}
    {%- if ns.last_role != 'user' -%}
      {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {{- ' ' ~ text(message.content).strip() ~ eos_token -}}
    {%- set ns.last_role = 'assistant' -%}
  {%- else -%}
    {{- raise_exception('Only user, assistant and system messages are supported.') -}}
  {%- endif -%}
{%- endfor -%}
)jinja";

/// ChatML: https://github.com/openai/openai-python/blob/v0.28.1/chatml.md.
inline constexpr std::string_view kChatMlTemplate = R"jinja(
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\n' + text(message.content) + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
)jinja";

/// A model of unknown family, often a base model: turns it may have seen in ordinary text.
inline constexpr std::string_view kPlainTurnsTemplate = R"jinja(
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.role == 'system' or message.role == 'developer' -%}
    {{- text(message.content) + '\n\n' -}}
  {%- else -%}
    {{- message.role | capitalize + ': ' + text(message.content) + '\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
)jinja";

}  // namespace nibble::tokenizer
