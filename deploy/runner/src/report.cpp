#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iomanip>
#include <limits>
#include <string_view>

namespace {

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::ceil(share * values.size())) - 1];
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[7];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace

void print_text(std::ostream& out, const Result& result) {
  out << std::fixed << result.arch << ' ' << result.precision << " on " << result.machine << ", loaded in "
      << std::setprecision(1) << result.load_ms << " ms\n";
  for (const auto& one : result.top) {
    out << std::setw(8) << std::setprecision(2) << 100 * one.probability << " %  " << one.label << '\n';
  }
  if (!result.forward_ms.empty()) {
    out << std::setprecision(3) << result.forward_ms.size() << " forwards: p50 " << percentile(result.forward_ms, 0.5)
        << " ms, p90 " << percentile(result.forward_ms, 0.9) << ", min " << percentile(result.forward_ms, 1e-9) << '\n';
  }
}

void print_json(std::ostream& out, const Result& result) {
  out << std::setprecision(std::numeric_limits<float>::max_digits10);
  out << "{\"model\": " << json_string(result.model) << ", \"arch\": " << json_string(result.arch)
      << ", \"precision\": " << json_string(result.precision) << ", \"machine\": " << json_string(result.machine)
      << ", \"load_ms\": " << result.load_ms << ", \"top\": [";
  for (size_t i = 0; i < result.top.size(); ++i) {
    const auto& one = result.top[i];
    out << (i ? ", " : "") << "{\"index\": " << one.index << ", \"label\": " << json_string(one.label)
        << ", \"logit\": " << one.logit << ", \"probability\": " << one.probability << '}';
  }
  out << "], \"outputs\": [";
  for (size_t i = 0; i < result.outputs.size(); ++i) out << (i ? ", " : "") << result.outputs[i];
  out << ']';
  if (!result.forward_ms.empty()) {
    out << ", \"runs\": " << result.forward_ms.size() << ", \"p50_ms\": " << percentile(result.forward_ms, 0.5)
        << ", \"p90_ms\": " << percentile(result.forward_ms, 0.9)
        << ", \"min_ms\": " << percentile(result.forward_ms, 1e-9);
  }
  out << "}\n";
}
