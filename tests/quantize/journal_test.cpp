#include "quantize/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "core/file.h"
#include "tiny_model.h"

namespace nibble::quantize {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class JournalTest : public ::testing::Test {
 protected:
  static Json identity() { return {{"method", {{"bits", 4}, {"sym", true}}}}; }

  static JournalEntry block(const std::string& name, std::vector<std::string> saved = {},
                            std::vector<std::string> dropped = {}) {
    JournalEntry entry;
    entry.block = name;
    entry.tensors = {{name + ".qweight", DType::I32, {8, 16}, 0}};
    entry.layers.resize(1);
    entry.layers[0].name = name + ".q_proj";
    entry.layers[0].output_error = 0.125;
    entry.saved_states = std::move(saved);
    entry.dropped_states = std::move(dropped);
    return entry;
  }

  void save_state(const Journal& journal, const std::string& name) const {
    write_text_file(journal.state_path(name), "state " + name);
  }

  std::string error_of_opening(Resume resume, const Json& who) const {
    try {
      const Journal journal(output_, resume, who);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  TemporaryFolder folder_;
  std::filesystem::path output_ = folder_ / "out";
};

TEST_F(JournalTest, EntriesComeBackAsTheyWere) {
  {
    Journal journal(output_, Resume::No, identity());
    journal.append(block("model.layers.1"));
    journal.append(block("model.layers.0"));  // in any order
  }
  const Journal journal(output_, Resume::Yes, identity());
  ASSERT_EQ(journal.entries().size(), 2u);
  EXPECT_EQ(journal.entries()[0].block, "model.layers.1");
  const JournalEntry* found = journal.find_block("model.layers.0");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->layers.at(0).output_error, 0.125);
  EXPECT_FALSE(found->layers.at(0).rtn_error.has_value());
  ASSERT_EQ(journal.written_tensors().size(), 2u);
  EXPECT_EQ(journal.written_tensors()[1].name, "model.layers.0.qweight");
  EXPECT_EQ(journal.written_tensors()[1].shape, (Shape{8, 16}));
  EXPECT_FALSE(journal.is_written());
}

TEST_F(JournalTest, ALineCutAnywhereIsAsIfItHadNotBeenWritten) {
  std::size_t first_bytes = 0;
  const std::filesystem::path file = output_ / ".nibble" / "journal.jsonl";
  {
    Journal journal(output_, Resume::No, identity());
    journal.append(block("a"));
    first_bytes = std::filesystem::file_size(file);
    journal.append(block("b"));
  }
  const std::string whole = read_text_file(file);
  for (std::size_t size = first_bytes; size < whole.size(); ++size) {
    std::filesystem::resize_file(file, size);
    {
      Journal journal(output_, Resume::Yes, identity());
      ASSERT_EQ(journal.entries().size(), 1u) << size;
      journal.append(block("b"));
    }
    EXPECT_EQ(read_text_file(file), whole);
  }
}

TEST_F(JournalTest, ABrokenLineInTheMiddleIsNamed) {
  const std::filesystem::path file = output_ / ".nibble" / "journal.jsonl";
  {
    Journal journal(output_, Resume::No, identity());
    journal.append(block("a"));
    journal.append(block("b"));
  }
  std::string text = read_text_file(file);
  text[text.find('\n') + 1] = '?';
  write_text_file(file, text);
  EXPECT_THAT(error_of_opening(Resume::Yes, identity()), AllOf(HasSubstr("journal.jsonl line 2"), HasSubstr("column")));
  text[0] = '?';
  write_text_file(file, text);
  for (const Resume resume : {Resume::No, Resume::Yes}) {
    EXPECT_THAT(error_of_opening(resume, identity()), HasSubstr("journal.jsonl line 1"));
    EXPECT_EQ(read_text_file(file), text);  // whoever looks at it next finds it as it was
  }
}

TEST_F(JournalTest, StatesLiveFromTheEntryThatSavesThemToTheOneThatDropsThem) {
  {
    Journal journal(output_, Resume::No, identity());
    save_state(journal, "0");
    journal.append(block("a", {"0"}));
    save_state(journal, "1");
    EXPECT_FALSE(journal.has_state("1"));
    journal.append(block("b", {"1"}, {"0"}));
    EXPECT_FALSE(journal.has_state("0"));
    EXPECT_FALSE(std::filesystem::exists(journal.state_path("0")));
    save_state(journal, "2");  // the run dies before it says so
  }
  Journal journal(output_, Resume::Yes, identity());
  EXPECT_TRUE(journal.has_state("1"));
  EXPECT_EQ(read_text_file(journal.state_path("1")), "state 1");
  EXPECT_FALSE(std::filesystem::exists(journal.state_path("2")));
  journal.rewind(1);
  EXPECT_FALSE(journal.has_state("1"));
  EXPECT_FALSE(std::filesystem::exists(journal.state_path("1")));
  EXPECT_EQ(journal.entries().size(), 1u);
}

TEST_F(JournalTest, RewindingIsDurable) {
  {
    Journal journal(output_, Resume::No, identity());
    journal.append(block("a"));
    journal.append(block("b"));
    journal.append(block("c"));
    journal.rewind(1);
    journal.append(block("d"));
  }
  const Journal journal(output_, Resume::Yes, identity());
  ASSERT_EQ(journal.entries().size(), 2u);
  EXPECT_EQ(journal.entries()[1].block, "d");
}

TEST_F(JournalTest, AnotherIdentityIsRefusedNamingWhatDiffers) {
  {
    Journal(output_, Resume::No, identity()).append(block("a"));
  }
  Json other = identity();
  other["method"]["bits"] = 3;
  other["seed"] = 1;
  EXPECT_THAT(error_of_opening(Resume::Yes, other),
              AllOf(HasSubstr("method bits was 4, is 3"), HasSubstr("seed was null, is 1"), Not(HasSubstr("sym"))));
  EXPECT_EQ(error_of_opening(Resume::Yes, identity()), "no error");
}

TEST_F(JournalTest, ARunWithoutAnEntryLeavesNothing) {
  {
    const Journal journal(output_, Resume::Yes, identity());
  }
  EXPECT_FALSE(std::filesystem::exists(output_));
  std::filesystem::create_directory(output_);
  {
    const Journal journal(output_, Resume::No, identity());
  }
  EXPECT_TRUE(std::filesystem::is_empty(output_));
}

TEST_F(JournalTest, OtherPeoplesFilesStay) {
  std::filesystem::create_directory(output_);
  write_text_file(output_ / "notes.txt", "mine");
  for (const Resume resume : {Resume::No, Resume::Yes}) {
    EXPECT_THAT(error_of_opening(resume, identity()), HasSubstr("exists already"));
    EXPECT_EQ(read_text_file(output_ / "notes.txt"), "mine");
    EXPECT_FALSE(std::filesystem::exists(output_ / ".nibble"));
  }
}

TEST_F(JournalTest, OneProcessHoldsTheFolderAtATime) {
  Journal journal(output_, Resume::No, identity());
  EXPECT_THAT(error_of_opening(Resume::Yes, identity()),
              AllOf(HasSubstr("another nibble is writing there"), HasSubstr("process " + std::to_string(::getpid()))));
  journal.remove();
  EXPECT_TRUE(std::filesystem::is_empty(output_));
  EXPECT_EQ(error_of_opening(Resume::No, identity()), "no error");
}

}  // namespace
}  // namespace nibble::quantize
