#pragma once

#include <span>
#include <string>
#include <vector>

namespace nibble::formats {

/// Module names and, behind those that vLLM runs fused, the name it fuses them under: it asks a config about
/// "self_attn.qkv_proj" where files have q_proj, k_proj and v_proj, and about "mlp.gate_up_proj".
std::vector<std::string> with_fused_names(std::span<const std::string> modules);
/// The fused name of a projection; empty where it stands alone or is not the first of its group.
std::string fused_name(const std::string& module);

}  // namespace nibble::formats
