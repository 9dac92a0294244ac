#include "core/json.h"

#include <cmath>
#include <cstdint>

#include "core/file.h"

namespace nibble {
namespace {

/// Builds the document while nlohmann's parser reads it, within the limits. Not the parser's own builder with a
/// callback: that one searches the whole array again at the end of each of its objects (nlohmann 3.11), which lets
/// 500,000 empty objects cost minutes.
class DocumentBuilder final : public Json::json_sax_t {
 public:
  DocumentBuilder(const JsonLimits& limits, std::string_view source) : limits_(limits), source_(source) {}

  Json take() { return std::move(document_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t& /*value*/) override { return false; }  // no JSON text holds one
  bool start_object(std::size_t /*size*/) override { return open(Json::object()); }
  bool start_array(std::size_t /*size*/) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    Container& object = open_.back();
    if (++object.num_keys > limits_.max_object_keys) {
      throw Error(ErrorCode::InvalidArgument, std::string(source_) + ": JSON object with more than " +
                                                  std::to_string(limits_.max_object_keys) + " keys");
    }
    object.slot = &(*object.value)[name];
    return true;
  }

  bool parse_error(std::size_t /*position*/, const std::string& /*token*/,
                   const nlohmann::detail::exception& error) override {
    // nlohmann's text begins with "[json.exception.parse_error.101] "; the rest is for people.
    std::string_view reason = error.what();
    if (const auto end = reason.find("] "); end != std::string_view::npos) reason.remove_prefix(end + 2);
    throw Error(ErrorCode::InvalidArgument,
                std::string(source_) + ": not valid JSON: " + std::string(reason.substr(0, 300)));
  }

 private:
  struct Container {
    Json* value;
    Json* slot = nullptr;  // of an object: where the value of the key just read belongs
    std::size_t num_keys = 0;
  };

  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  Json* place(Json value) {
    if (open_.empty()) return &(document_ = std::move(value));
    Container& container = open_.back();
    if (container.value->is_object()) return &(*container.slot = std::move(value));
    return &container.value->emplace_back(std::move(value));
  }

  bool open(Json container) {
    if (open_.size() >= limits_.max_depth) {
      throw Error(ErrorCode::InvalidArgument,
                  std::string(source_) + ": JSON nested deeper than " + std::to_string(limits_.max_depth));
    }
    open_.push_back({place(std::move(container))});
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  JsonLimits limits_;
  std::string_view source_;
  Json document_;
  std::vector<Container> open_;  // the containers around what comes next; stay in place while they are open
};

template <class T>
std::optional<T> convert_value(const Json& value) {
  if constexpr (std::is_same_v<T, bool>) {
    if (value.is_boolean()) return value.get<bool>();
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX) return std::nullopt;
    if (value.is_number_integer()) return value.get<std::int64_t>();
    if (value.is_number_float()) {  // 1e3 or 64.0 as some writers have it
      const double number = value.get<double>();
      if (number == std::floor(number) && std::fabs(number) < 0x1p53) return static_cast<std::int64_t>(number);
    }
  } else if constexpr (std::is_same_v<T, double>) {
    if (value.is_number()) return value.get<double>();
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (value.is_string()) return value.get<std::string>();
  } else {
    if (!value.is_array()) return std::nullopt;
    T strings;
    for (const Json& element : value) {
      if (!element.is_string()) return std::nullopt;
      strings.push_back(element.get<std::string>());
    }
    return strings;
  }
  return std::nullopt;
}

template <class T>
constexpr const char* kTypeName = std::is_same_v<T, bool>           ? "a boolean"
                                  : std::is_same_v<T, std::int64_t> ? "an integer"
                                  : std::is_same_v<T, double>       ? "a number"
                                  : std::is_same_v<T, std::string>  ? "a string"
                                                                    : "an array of strings";

}  // namespace

Json parse_json(std::string_view text, std::string_view source, const JsonLimits& limits) {
  DocumentBuilder builder(limits, source);
  Json::sax_parse(text, &builder);
  return builder.take();
}

Json read_json_file(const std::filesystem::path& path) {
  return parse_json(read_text_file(path, std::size_t{256} << 20), path.string());
}

void write_json_file(const std::filesystem::path& path, const Json& json) {
  write_text_file(path, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

template <class T>
std::optional<T> get_optional(const Json& object, const char* key) {
  if (!object.is_object()) return std::nullopt;
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return std::nullopt;
  if (auto value = convert_value<T>(*found)) return value;
  throw Error(ErrorCode::InvalidArgument,
              std::string(key) + ": expected " + kTypeName<T> + ", found " +
                  found->dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 80));
}

template <class T>
T get(const Json& object, const char* key) {
  if (auto value = get_optional<T>(object, key)) return std::move(*value);
  throw Error(ErrorCode::InvalidArgument, std::string(key) + ": missing; expected " + kTypeName<T>);
}

template bool get<bool>(const Json&, const char*);
template std::int64_t get<std::int64_t>(const Json&, const char*);
template double get<double>(const Json&, const char*);
template std::string get<std::string>(const Json&, const char*);
template std::vector<std::string> get<std::vector<std::string>>(const Json&, const char*);
template std::optional<bool> get_optional<bool>(const Json&, const char*);
template std::optional<std::int64_t> get_optional<std::int64_t>(const Json&, const char*);
template std::optional<double> get_optional<double>(const Json&, const char*);
template std::optional<std::string> get_optional<std::string>(const Json&, const char*);
template std::optional<std::vector<std::string>> get_optional<std::vector<std::string>>(const Json&, const char*);

}  // namespace nibble
