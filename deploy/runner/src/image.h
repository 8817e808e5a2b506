// From a file to the network's input: float32, NCHW, RGB, values in [0, 1].
#pragma once

#include <string>
#include <vector>

struct InputShape {
  int channels, height, width;
  size_t size() const { return size_t(channels) * height * width; }
};

// How the images were prepared that the model was evaluated on.
struct Preprocessing {
  double crop_pct;            // side of the crop, as a share of the resized image's
  std::string interpolation;  // bilinear or bicubic
};

// Image or raw tensor, told apart by ".raw"; throws InputError.
std::vector<float> read_input(const std::string& path, const InputShape& shape, const Preprocessing& preprocessing);
