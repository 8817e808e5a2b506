// Run a .pte that deploy/export.py wrote on one image: the classes of a classifier, the outputs of other networks.
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <numeric>
#include <sstream>

// module.h of ExecuTorch 1.5 declares members that it marks deprecated itself.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>
#pragma GCC diagnostic pop

#include "image.h"
#include "options.h"
#include "report.h"

namespace {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using Clock = std::chrono::steady_clock;

// ExecuTorch's last complaint. It also tells how it looked for the processor's cores, which is left out.
std::string complaint;

void listen(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message,
            size_t length) {
  if (level == et_pal_log_level_t::kError || level == et_pal_log_level_t::kFatal) complaint.assign(message, length);
}

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The value of a constant method, or the fallback for a file that lacks it (not exported by edge_sk).
std::vector<EValue> constant(Module& module, const std::string& name) {
  const auto names = module.method_names();
  if (!names.ok() || !names->contains(name)) return {};
  auto values = module.execute(name);
  return values.ok() ? std::move(*values) : std::vector<EValue>{};
}

std::string text(Module& module, const std::string& name, std::string fallback) {
  const auto values = constant(module, name);
  return values.empty() || !values[0].isString() ? fallback : std::string(values[0].toString());
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) out.push_back(line);
  return out;
}

InputShape input_shape(Module& module, ScalarType& type) {
  const auto meta = module.method_meta("forward");
  if (!meta.ok() || meta->num_inputs() != 1) throw InputError("the model's forward does not take one tensor");
  const auto tensor = meta->input_tensor_meta(0);
  if (!tensor.ok() || tensor->sizes().size() != 4 || tensor->sizes()[0] != 1) {
    throw InputError("the model's input is not one (1, C, H, W) image");
  }
  type = tensor->scalar_type();
  return {tensor->sizes()[1], tensor->sizes()[2], tensor->sizes()[3]};
}

std::vector<float> to_floats(const executorch::aten::Tensor& tensor) {
  std::vector<float> out(tensor.numel());
  if (tensor.scalar_type() == ScalarType::Half) {
    std::copy_n(tensor.const_data_ptr<executorch::aten::Half>(), out.size(), out.begin());
  } else if (tensor.scalar_type() == ScalarType::Float) {
    std::copy_n(tensor.const_data_ptr<float>(), out.size(), out.begin());
  } else {
    throw InputError("the model's output is neither float32 nor float16");
  }
  return out;
}

std::vector<float> softmax(std::vector<float> values) {
  const float largest = *std::max_element(values.begin(), values.end());
  for (auto& value : values) value = std::exp(value - largest);
  const float sum = std::accumulate(values.begin(), values.end(), 0.0f);
  for (auto& value : values) value /= sum;
  return values;
}

std::vector<Class> best(const std::vector<float>& outputs, bool probabilities, const std::vector<std::string>& labels,
                        int count) {
  const auto shares = probabilities ? outputs : softmax(outputs);
  std::vector<int> order(outputs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return outputs[a] > outputs[b]; });
  order.resize(std::min<size_t>(order.size(), count));
  std::vector<Class> top;
  for (const int index : order) {
    const bool named = static_cast<size_t>(index) < labels.size();
    top.push_back({index, named ? labels[index] : "class " + std::to_string(index), outputs[index], shares[index]});
  }
  return top;
}

Result run(const Options& options) {
  const auto start = Clock::now();
  Module module(options.model);
  if (const Error error = module.load_forward(); error != Error::Ok) {
    throw InputError("cannot load " + options.model + ": " + executorch::runtime::to_string(error) +
                     "; is it a whole .pte of this or an older ExecuTorch?");
  }
  Result result;
  result.model = options.model;
  result.load_ms = milliseconds_since(start);
  ScalarType type{};
  const InputShape shape = input_shape(module, type);
  const auto crop = constant(module, "crop_pct");
  auto image = read_input(options.input, shape,
                          {crop.empty() ? 1.0 : crop[0].toDouble(), text(module, "interpolation", "bilinear")});
  std::vector<executorch::aten::Half> halves;
  if (type == ScalarType::Half) halves.assign(image.begin(), image.end());
  void* data = type == ScalarType::Half ? static_cast<void*>(halves.data()) : image.data();
  const auto input = executorch::extension::from_blob(data, {1, shape.channels, shape.height, shape.width}, type);

  const auto forward = [&] {
    auto out = module.forward(input);
    if (!out.ok()) throw InputError(std::string("the model failed: ") + executorch::runtime::to_string(out.error()));
    return std::move(*out);
  };
  const auto names = lines(text(module, "outputs", ""));
  for (const auto& value : forward()) {
    const auto index = result.outputs.size();
    if (!value.isTensor()) throw InputError("output " + std::to_string(index) + " of the model is no tensor");
    const auto& tensor = value.toTensor();
    result.outputs.push_back({index < names.size() ? names[index] : "output_" + std::to_string(index),
                              {tensor.sizes().begin(), tensor.sizes().end()}, to_floats(tensor)});
  }
  for (int i = 0; options.runs > 0 && i < options.warmup; ++i) forward();
  for (int i = 0; i < options.runs; ++i) {
    const auto begin = Clock::now();
    forward();
    result.forward_ms.push_back(milliseconds_since(begin));
  }
  if (result.outputs.size() == 1 && result.outputs[0].shape.size() == 2) {
    const auto softmaxed = constant(module, "softmax");
    result.top = best(result.outputs[0].values, !softmaxed.empty() && softmaxed[0].toBool(),
                      lines(text(module, "labels", "")), options.top);
  }
  result.arch = text(module, "arch", options.model);
  result.precision = text(module, "precision", "unknown precision");
  utsname machine{};
  uname(&machine);
  result.machine = machine.machine;
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(listen, __FILE__));
  try {
    const auto options = parse_options(argc, argv);
    if (!options) {
      std::cout << usage();
      return 0;
    }
    const auto result = run(*options);
    if (!options->write.empty()) write_outputs(options->write, result);
    (options->json ? print_json : print_text)(std::cout, result);
    return 0;
  } catch (const InputError& error) {
    std::cerr << "error: " << error.what() << (complaint.empty() ? "" : " (ExecuTorch: " + complaint + ")") << '\n';
    return 2;
  }
}
