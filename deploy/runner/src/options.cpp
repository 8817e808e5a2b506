#include "options.h"

#include <charconv>
#include <string_view>

const char* usage() {
  return "usage: edge_sk_runner MODEL.pte INPUT [--top N] [--runs N] [--warmup N] [--write DIR] [--json]\n"
         "\n"
         "  INPUT     image as PPM or PGM (P6, P5), resized (bilinear, bicubic) and cropped as evaluated,\n"
         "            or .raw: float32 of the model's input shape, values in [0, 1]\n"
         "  --top N   classes to print (default 5)\n"
         "  --runs N  also time N forwards after --warmup N (default 3)\n"
         "  --write DIR  write each output to DIR/NAME.raw, float32\n"
         "  --json    one JSON object instead of text\n";
}

namespace {

int parse_count(std::string_view name, std::string_view text, int least) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < least) {
    throw InputError(std::string(name) + " " + std::string(text) + " is not a whole number of at least " +
                     std::to_string(least));
  }
  return value;
}

}  // namespace

std::optional<Options> parse_options(int argc, char** argv) {
  Options options;
  int positional = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    const auto value = [&](const char* what = "a number") {
      if (i + 1 == argc) throw InputError(std::string(arg) + " needs " + what);
      return std::string_view(argv[++i]);
    };
    if (arg == "--help" || arg == "-h") return std::nullopt;
    if (arg == "--json") {
      options.json = true;
    } else if (arg == "--top") {
      options.top = parse_count(arg, value(), 1);
    } else if (arg == "--runs") {
      options.runs = parse_count(arg, value(), 0);
    } else if (arg == "--warmup") {
      options.warmup = parse_count(arg, value(), 0);
    } else if (arg == "--write") {
      options.write = value("a folder");
    } else if (arg.starts_with("--")) {
      throw InputError("unknown option " + std::string(arg) + "; --help lists them");
    } else if (positional < 2) {
      (positional++ == 0 ? options.model : options.input) = arg;
    } else {
      throw InputError("one model and one input, not also " + std::string(arg));
    }
  }
  if (positional < 2) throw InputError("a model and an input are needed; --help tells more");
  return options;
}
