#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/error.h"
#include "core/json.h"
#include "quantize/journal_entry.h"
#include "quantize/report.h"

namespace {

template <class Action>
void allow_refusal(Action&& action) {
  try {
    action();
  } catch (const nibble::Error&) {
    return;  // a refusal in words is what most inputs should get
  }
}

}  // namespace

/// What a run wrote of itself and a later program reads: a nibble_report.json, or a line of a journal. What is read can
/// be shown, and written again.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  using namespace nibble;
  allow_refusal([&] {
    const Json json = parse_json({reinterpret_cast<const char*>(input), size_bytes}, "record");
    allow_refusal([&] {
      const quantize::Report report = quantize::report_from_json(json);
      quantize::render_html(report);
      quantize::to_json(report);
    });
    allow_refusal([&] { quantize::to_json(quantize::journal_entry_from_json(json)); });
  });
  return 0;
}
