#include "verify/codebook_rows.h"

#include <gtest/gtest.h>

namespace nibble::verify {
namespace {

weights::CodebookWeights make_tables(float first) {
  weights::CodebookWeights w;
  w.out_features = 3;
  w.in_features = 8;
  w.lookup_table = Tensor::empty(DType::F32, {3, 16});
  for (float& value : w.lookup_table.span<float>()) value = first++;
  return w;
}

TEST(CodebookRows, NamesBothPlacesOfARowThatStandsInTwoLinears) {
  CodebookRows rows;
  EXPECT_TRUE(rows.add("a", make_tables(0)).empty());
  EXPECT_TRUE(rows.add("b", make_tables(1000)).empty());
  const std::vector<Finding> findings = rows.add("c", make_tables(1016));  // its first rows are b's last
  ASSERT_EQ(findings.size(), 2u);
  EXPECT_EQ(findings[0].where, "c.lookup_table");
  EXPECT_EQ(findings[0].problem, "row 0 is row 1 of b.lookup_table: a table of another linear");
}

TEST(CodebookRows, RowsOfOneValueMayOccurTwice) {
  CodebookRows rows;
  weights::CodebookWeights zeros = make_tables(0);
  for (float& value : zeros.lookup_table.span<float>()) value = 0;
  EXPECT_TRUE(rows.add("a", zeros).empty());
  EXPECT_TRUE(rows.add("b", zeros).empty());
}

}  // namespace
}  // namespace nibble::verify
