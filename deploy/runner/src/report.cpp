#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <limits>
#include <string_view>

#include "options.h"

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

std::string joined(const std::vector<int>& numbers, const char* between) {
  std::string out;
  for (const int number : numbers) out += (out.empty() ? "" : between) + std::to_string(number);
  return out;
}

}  // namespace

void write_outputs(const std::string& folder, const Result& result) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  for (const auto& output : result.outputs) {
    std::string name = output.name;  // the file's own words, which must not lead out of the folder
    std::replace(name.begin(), name.end(), '/', '_');
    const std::string path = folder + "/" + name + ".raw", part = path + ".part";
    std::ofstream file(part, std::ios::binary);
    file.write(reinterpret_cast<const char*>(output.values.data()), output.values.size() * sizeof(float));
    file.close();
    if (file) std::filesystem::rename(part, path, error);
    if (!file || error) throw InputError("cannot write " + path + ": is " + folder + " a folder with room?");
  }
}

void print_text(std::ostream& out, const Result& result) {
  out << std::fixed << result.arch << ' ' << result.precision << " on " << result.machine << ", loaded in "
      << std::setprecision(1) << result.load_ms << " ms\n";
  for (const auto& one : result.top) {
    out << std::setw(8) << std::setprecision(2) << 100 * one.probability << " %  " << one.label << '\n';
  }
  for (const auto& output : result.outputs) {
    if (result.top.empty()) out << output.name << ' ' << joined(output.shape, "x") << '\n';
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
  out << "], \"shapes\": {";
  for (size_t i = 0; i < result.outputs.size(); ++i) {
    const auto& output = result.outputs[i];
    out << (i ? ", " : "") << json_string(output.name) << ": [" << joined(output.shape, ", ") << ']';
  }
  out << '}';
  if (!result.top.empty()) {
    out << ", \"outputs\": [";
    const auto& values = result.outputs[0].values;
    for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "") << values[i];
    out << ']';
  }
  if (!result.forward_ms.empty()) {
    out << ", \"runs\": " << result.forward_ms.size() << ", \"p50_ms\": " << percentile(result.forward_ms, 0.5)
        << ", \"p90_ms\": " << percentile(result.forward_ms, 0.9)
        << ", \"min_ms\": " << percentile(result.forward_ms, 1e-9);
  }
  out << "}\n";
}
