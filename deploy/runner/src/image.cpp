#include "image.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>

#include "options.h"

namespace {

struct Image {
  int channels, height, width;
  std::vector<float> values;  // HWC, in [0, 255]
};

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw InputError("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Netpbm (https://netpbm.sourceforge.net/doc/ppm.html): magic, width, height, maximum, one white space, bytes.
Image parse_netpbm(const std::vector<char>& bytes, const std::string& path) {
  const auto bad = [&](const std::string& why) { return InputError(path + " is not a PPM or PGM image: " + why); };
  if (bytes.size() < 2 || bytes[0] != 'P' || (bytes[1] != '5' && bytes[1] != '6')) {
    throw bad("it does not start with P5 or P6; convert it, for instance: magick photo.jpg photo.ppm");
  }
  size_t at = 2;
  const auto number = [&] {
    while (at < bytes.size() && (std::isspace(static_cast<unsigned char>(bytes[at])) || bytes[at] == '#')) {
      if (bytes[at] == '#') {
        while (at < bytes.size() && bytes[at] != '\n') ++at;
      } else {
        ++at;
      }
    }
    long value = -1;
    while (at < bytes.size() && std::isdigit(static_cast<unsigned char>(bytes[at])) && value < 1'000'000) {
      value = std::max(value, 0L) * 10 + (bytes[at++] - '0');
    }
    if (value < 1 || value >= 1'000'000) throw bad("a number in its header is missing or out of range");
    return static_cast<int>(value);
  };
  Image image{bytes[1] == '6' ? 3 : 1, 0, 0, {}};
  image.width = number();
  image.height = number();
  if (number() != 255) throw bad("its maximum is not 255");
  ++at;
  const size_t wanted = size_t(image.channels) * image.height * image.width;
  if (at > bytes.size() || bytes.size() - at < wanted) throw bad("it is truncated");
  image.values.reserve(wanted);
  for (size_t i = 0; i < wanted; ++i) image.values.push_back(static_cast<uint8_t>(bytes[at + i]));
  return image;
}

// A resampling kernel of Pillow's: 0 beyond `support`.
struct Filter {
  double support;
  double (*weight)(double distance);
};

double triangle(double distance) { return std::max(0.0, 1 - distance); }

// Keys, Cubic convolution interpolation for digital image processing (1981), with his a = -1/2.
double cubic(double distance) {
  if (distance < 1) return (1.5 * distance - 2.5) * distance * distance + 1;
  return distance < 2 ? ((2.5 - 0.5 * distance) * distance - 4) * distance + 2 : 0;
}

Filter filter(const std::string& interpolation) {
  if (interpolation == "bilinear") return {1, triangle};
  if (interpolation == "bicubic") return {2, cubic};
  throw InputError("the model was evaluated with " + interpolation +
                   " resizing, this program has bilinear and bicubic; resize elsewhere and give a .raw");
}

// The filter, widened when shrinking, along one axis: `outer` lines of `length` elements of `inner` values each.
std::vector<float> resize_axis(const std::vector<float>& in, int outer, int length, int inner, int wanted,
                               const Filter& filter) {
  std::vector<float> out(size_t(outer) * wanted * inner);
  const double scale = double(length) / wanted, widened = std::max(scale, 1.0), reach = filter.support * widened;
  for (int to = 0; to < wanted; ++to) {
    const double center = (to + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - reach + 0.5));
    const int last = std::min(length, static_cast<int>(center + reach + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int from = first; from < last; ++from) {
      weights.push_back(filter.weight(std::abs((from + 0.5 - center) / widened)));
      sum += weights.back();
    }
    for (int o = 0; o < outer; ++o) {
      for (int i = 0; i < inner; ++i) {
        double value = 0;
        for (int from = first; from < last; ++from) {
          value += weights[from - first] * in[(size_t(o) * length + from) * inner + i];
        }
        // Pillow keeps 8 bits between the two passes.
        const double rounded = std::clamp(std::round(value / sum), 0.0, 255.0);
        out[(size_t(o) * wanted + to) * inner + i] = static_cast<float>(rounded);
      }
    }
  }
  return out;
}

Image resize(const Image& image, int height, int width, const Filter& filter) {
  auto wide = resize_axis(image.values, image.height, image.width, image.channels, width, filter);
  auto both = resize_axis(wide, 1, image.height, width * image.channels, height, filter);
  return {image.channels, height, width, std::move(both)};
}

std::vector<float> preprocess(const Image& image, const InputShape& shape, const Preprocessing& preprocessing) {
  // In proportion, to cover the input's sides / crop_pct. What is longer is rounded as timm does: down for a square
  // input, else to the nearest. Integers, because side * (target / side) is less than target for some sides.
  const auto covered = [&](int side) { return std::max(side, static_cast<int>(side / preprocessing.crop_pct)); };
  const int least_height = covered(shape.height), least_width = covered(shape.width);
  const auto in_proportion = [&](int side, int target, int other) {
    const long long product = static_cast<long long>(side) * target;
    return static_cast<int>(shape.height == shape.width ? product / other : std::llrint(double(product) / other));
  };
  const int height = std::max(least_height, in_proportion(image.height, least_width, image.width));
  const int width = std::max(least_width, in_proportion(image.width, least_height, image.height));
  const bool fits = height == image.height && width == image.width;
  const Image sized = fits ? image : resize(image, height, width, filter(preprocessing.interpolation));
  // Halves to the even number, as in Python.
  const int top = static_cast<int>(std::nearbyint((height - shape.height) / 2.0));
  const int left = static_cast<int>(std::nearbyint((width - shape.width) / 2.0));
  std::vector<float> out(shape.size());
  for (int c = 0; c < shape.channels; ++c) {
    for (int y = 0; y < shape.height; ++y) {
      for (int x = 0; x < shape.width; ++x) {
        const int source = image.channels == 1 ? 0 : c;  // a grey image has three equal channels
        out[(size_t(c) * shape.height + y) * shape.width + x] =
            sized.values[(size_t(y + top) * width + x + left) * image.channels + source] / 255.0f;
      }
    }
  }
  return out;
}

}  // namespace

std::vector<float> read_input(const std::string& path, const InputShape& shape, const Preprocessing& preprocessing) {
  const auto bytes = read_file(path);
  if (!path.ends_with(".raw")) {
    const Image image = parse_netpbm(bytes, path);
    if (image.channels == 3 && shape.channels != 3) {
      throw InputError(path + " has 3 channels, the model reads " + std::to_string(shape.channels));
    }
    return preprocess(image, shape, preprocessing);
  }
  if (bytes.size() != shape.size() * sizeof(float)) {
    throw InputError(path + " has " + std::to_string(bytes.size()) + " bytes; float32 of 1x" +
                     std::to_string(shape.channels) + "x" + std::to_string(shape.height) + "x" +
                     std::to_string(shape.width) + " has " + std::to_string(shape.size() * sizeof(float)));
  }
  std::vector<float> out(shape.size());
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(out.data()));
  return out;
}
