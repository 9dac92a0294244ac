#pragma once

#include <CLI/CLI.hpp>
#include <functional>

/// One function a subcommand, each in the file of its name. It registers its flags on `command` and returns what to
/// run once they are parsed; the result is the exit code: 0 done, 1 error, 2 usage, 3 rejected. Failures are thrown
/// as nibble::Error and become one line on stderr in main.cpp. To add one: its file, a declaration here, a row in
/// main.cpp, a line in CMakeLists.txt, a test in tests/cli.
///
/// The returned function owns the values that the flags are bound to (a shared_ptr that it and CLI11's options share:
/// both live until the process ends).
namespace nibble::apps {

std::function<int()> add_quantize(CLI::App& command);
std::function<int()> add_eval(CLI::App& command);
std::function<int()> add_serve(CLI::App& command);
std::function<int()> add_generate(CLI::App& command);
std::function<int()> add_import(CLI::App& command);
std::function<int()> add_convert(CLI::App& command);
std::function<int()> add_inspect(CLI::App& command);
std::function<int()> add_verify(CLI::App& command);
std::function<int()> add_bench(CLI::App& command);
std::function<int()> add_bench_serve(CLI::App& command);
std::function<int()> add_reproduce(CLI::App& command);

}  // namespace nibble::apps
