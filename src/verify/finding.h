#pragma once

#include <string>

namespace nibble::verify {

/// One thing that is wrong with a checkpoint.
struct Finding {
  std::string where;    // a tensor, or a file where no tensor can be named
  std::string problem;  // what is wrong with it, and the figures that say so
};

}  // namespace nibble::verify
