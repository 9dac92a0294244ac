#pragma once

#include <string_view>

namespace nibble::verify {

/// What `verify` lets a model read: prose, a list, code and dialogue, plain enough for any model of English.
inline constexpr std::string_view kSampleText =
    R"(The river rises in the hills above the town, where snow lies until April, and it takes four days for the water to reach the sea. In 1864 a bridge was built across it, and the railway followed two years later. Most people who live there today work in the harbour or at the university.

def read_lines(path):
    with open(path, "r") as file:
        return [line.strip() for line in file]

for i in range(10):
    print(i, i * i)

"I don't know," she said, and closed the door behind her. Then she went down the stairs, one step at a time, because the light was out again.

The months of the year are January, February, March, April, May, June, July, August, September, October, November and December. Water freezes at 0 degrees and boils at 100 degrees Celsius. The capital of France is Paris, the capital of Italy is Rome, and the capital of Spain is Madrid.
)";

}  // namespace nibble::verify
