#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>

#include "core/error.h"
#include "tokenizer/chat_template.h"

// That templates render as jinja2 renders them is shown against jinja2 itself (tests/oracle/test_chat_template.py).
// Here: what jinja2 has no answer to, the limits, and how errors read.
namespace nibble::tokenizer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string render(const std::string& source, const Json& extra_kwargs = nullptr) {
  ChatTemplate::Options options;
  options.extra_kwargs = extra_kwargs;
  return ChatTemplate::compile(source, "t.jinja")->render(Json::array(), options);
}

/// The InvalidArgument that compiling or rendering `source` ends with.
std::string error_of(const std::string& source, const Json& extra_kwargs = nullptr) {
  try {
    render(source, extra_kwargs);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error: " << source.substr(0, 200);
  return {};
}

std::string repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(Jinja, NamesTemplateAndLineOfASyntaxError) {
  EXPECT_EQ(error_of("a\n\n{% if %}"), "t.jinja: line 3: Expected an expression, got ''");
  EXPECT_EQ(error_of("\n{{ 1|nope }}"), "t.jinja: line 2: No filter named 'nope'.");
  EXPECT_EQ(error_of("{% if true %}"),
            "t.jinja: line 1: unexpected end of template; looking for elif or else or endif");
}

TEST(Jinja, NamesTemplateAndLineOfARenderError) {
  EXPECT_EQ(error_of("a\n{{ missing.x }}"), "t.jinja: line 2: 'missing' is undefined");
  EXPECT_EQ(error_of("{{ [][0].x }}"), "t.jinja: line 1: list object has no element 0");
  EXPECT_EQ(error_of("{{ {}.a.b }}"), "t.jinja: line 1: 'dict object' has no attribute 'a'");
}

TEST(Jinja, PassesRaiseExceptionThroughUnchanged) {
  EXPECT_EQ(error_of("\n{{ raise_exception('Roles must alternate!') }}"), "Roles must alternate!");
}

TEST(Jinja, RefusesInternalsAsTheSandboxDoes) {
  EXPECT_EQ(render("{{ ''.__class__ }}|{{ []['__class__'] }}|{{ none.__doc__ }}"), "||");
  EXPECT_THAT(error_of("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
              HasSubstr("'__class__' of 'str' object is unsafe"));
  EXPECT_THAT(error_of("{{ range.__globals__.os }}"), HasSubstr("is unsafe"));
  EXPECT_THAT(error_of("{{ '{0.__class__.__init__}'.format(1) }}"), HasSubstr("is unsafe"));
  EXPECT_THAT(error_of("{% set ns = namespace() %}{% set ns.__class__ = 1 %}"), HasSubstr("underscore"));
}

TEST(Jinja, RefusesToChangeListsAndDicts) {
  EXPECT_THAT(error_of("{{ [].append(1) }}"), HasSubstr("'append' of 'list' object is unsafe"));
  EXPECT_THAT(error_of("{{ {}.update(a=1) }}"), HasSubstr("'update' of 'dict' object is unsafe"));
}

TEST(JinjaLimits, StopsLongLoops) {
  EXPECT_THAT(error_of("{% for i in range(10**9) %}{% endfor %}"), HasSubstr("Range too big"));
  const std::string loop = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
  EXPECT_THAT(error_of(loop), HasSubstr("more steps than the limit"));
}

TEST(JinjaLimits, StopsRecursion) {
  EXPECT_THAT(error_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), HasSubstr("recurse deeper"));
  EXPECT_THAT(error_of("{% macro m(x) %}{% call m(x) %}{{ caller }}{% endcall %}{{ caller }}{% endmacro %}{{ m(1) }}"),
              HasSubstr("recurse deeper"));
  EXPECT_THAT(error_of("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}"), HasSubstr("recurse deeper"));
}

TEST(JinjaLimits, StopsHugeText) {
  EXPECT_THAT(error_of("{{ 'a' * 10**9 }}"), HasSubstr("beyond the limit of 64 MiB"));
  EXPECT_THAT(error_of("{{ 10**18 * 'ab' }}"), HasSubstr("beyond the limit of 64 MiB"));
  EXPECT_THAT(error_of("{{ ('a' * 10**7).replace('a', 'b' * 10**6) }}"), HasSubstr("limit"));
  EXPECT_THAT(error_of("{{ 'x'.center(10**12) }}"), HasSubstr("limit"));
  EXPECT_THAT(error_of("{{ '%999999999d' % 1 }}"), HasSubstr("width"));
  EXPECT_THAT(error_of("{{ '{:999999999}'.format(1) }}"), HasSubstr("width"));
  EXPECT_THAT(
      error_of(
          "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"),
      HasSubstr("limit"));
  EXPECT_THAT(error_of("{% set a = 'x' * 10**7 %}{% for i in range(20) %}{{ a }}{% endfor %}"), HasSubstr("limit"));
}

TEST(JinjaLimits, StopsHugeValues) {
  EXPECT_THAT(error_of("{{ [1] * 10**9 }}"), HasSubstr("refused"));
  const std::string nest =
      "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}";
  EXPECT_THAT(error_of(nest), HasSubstr("nests deeper than 400 levels"));
  const std::string twice =
      "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
  EXPECT_THAT(error_of(twice), HasSubstr("size limit"));
  const std::string lazy =
      "{% set ns = namespace(x=[1]) %}{% for i in range(5000) %}{% set ns.x = ns.x|map('abs') %}{% endfor %}";
  EXPECT_THAT(error_of(lazy), HasSubstr("nests deeper than 400 levels"));
}

TEST(JinjaLimits, SurvivesValuesThatHoldThemselves) {
  EXPECT_EQ(render("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns.me.me.me is defined }}"), "True");
  EXPECT_EQ(
      render("{% set ns = namespace() %}{% for i in range(20000) %}{% set ns = namespace(inner=ns) %}{% endfor %}x"),
      "x");
  const std::string chain =
      "{% set ns = namespace(m=none) %}{% macro f(g) %}{% macro h() %}{{ g }}{% endmacro %}{% set ns.m = h %}{% "
      "endmacro %}"
      "{% for i in range(20000) %}{{ f(ns.m) }}{% endfor %}x";
  EXPECT_EQ(render(chain), "x");
  const std::string loops =
      "{% set ns = namespace(l=none) %}{% macro f(l) %}{% for x in [1] %}{% set ns.l = loop %}{% endfor %}{% endmacro "
      "%}"
      "{% for i in range(20000) %}{{ f(ns.l) }}{% endfor %}x";
  EXPECT_EQ(render(loops), "x");
}

TEST(JinjaLimits, RefusesDeepNestingInTheSource) {
  EXPECT_THAT(error_of("{{ " + repeated("(", 100'000)), HasSubstr("nest deeper"));
  EXPECT_THAT(error_of("{{ " + repeated("[", 100'000) + "1"), HasSubstr("nest deeper"));
  EXPECT_THAT(error_of("{{ " + repeated("-", 100'000) + "1 }}"), HasSubstr("nest deeper"));
  EXPECT_THAT(error_of("{{ " + repeated("not ", 100'000) + "1 }}"), HasSubstr("nest deeper"));
  EXPECT_THAT(error_of(repeated("{% if 1 %}", 100'000)), HasSubstr("nest deeper"));
  EXPECT_THAT(error_of("{{ 1" + repeated(" + 1", 100'000) + " }}"), HasSubstr("operators in one tag"));
  EXPECT_THAT(error_of("{{ a" + repeated(".a", 100'000) + " }}"), HasSubstr("operators in one tag"));
  EXPECT_THAT(error_of("{{ a" + repeated("|upper", 100'000) + " }}"), HasSubstr("operators in one tag"));
  EXPECT_THAT(error_of("{{ 1" + repeated(" if 1 else 1", 100'000) + " }}"), HasSubstr("nest deeper"));
}

TEST(JinjaLimits, TakesLinearTimeWhereNaiveSearchIsQuadratic) {
  const auto start = std::chrono::steady_clock::now();
  const std::string text = "{% set a = 'a' * 4000000 %}{% set b = 'a' * 2000000 ~ 'b' %}";
  EXPECT_EQ(render(text + "{{ b in a }}{{ a.find(b) }}{{ a.rfind('b' ~ 'a' * 2000000) }}{{ a.count(b) }}"),
            "False-1-10");
  EXPECT_EQ(render(text + "{{ a.strip(b) | length }}{{ a.split(b) | length }}"), "01");
  // Quadratic would take hours; a minute leaves room for sanitizers.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::minutes(1));
}

TEST(Jinja, RefusesIntegersBeyond64Bits) {
  EXPECT_THAT(error_of("{{ 9223372036854775807 + 1 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(error_of("{{ 10 ** 30 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(error_of("{{ 99999999999999999999 }}"), HasSubstr("64 bits"));
  EXPECT_THAT(error_of("{{ x }}", {{"x", 18446744073709551615ULL}}), HasSubstr("64 bits"));
}

TEST(Jinja, RefusesASourceThatIsNotUtf8) {
  EXPECT_THAT(error_of("a\xff"), HasSubstr("not valid UTF-8"));
}

TEST(Jinja, RefusesTagsOfOtherTemplates) {
  EXPECT_THAT(error_of("{% include 'x' %}"), HasSubstr("'include' is not available in chat templates"));
  EXPECT_THAT(error_of("{% do 1 %}"), HasSubstr("unknown tag 'do'"));
}

}  // namespace
}  // namespace nibble::tokenizer
