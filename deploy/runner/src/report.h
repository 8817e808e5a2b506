// What the program prints.
#pragma once

#include <ostream>
#include <string>
#include <vector>

struct Class {
  int index;
  std::string label;
  float logit;
  float probability;
};

struct Output {
  std::string name;
  std::vector<int> shape;
  std::vector<float> values;
};

struct Result {
  std::string model, arch, precision, machine;
  std::vector<Output> outputs;
  std::vector<Class> top;  // of a classifier, which has one output of one value per class
  double load_ms = 0;
  std::vector<double> forward_ms;  // empty when nothing was timed
};

// Write each output to DIR/NAME.raw, in the order of its shape; throws InputError.
void write_outputs(const std::string& folder, const Result& result);
void print_text(std::ostream& out, const Result& result);
void print_json(std::ostream& out, const Result& result);
