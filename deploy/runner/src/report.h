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

struct Result {
  std::string model, arch, precision, machine;
  std::vector<float> outputs;
  std::vector<Class> top;
  double load_ms = 0;
  std::vector<double> forward_ms;  // empty when nothing was timed
};

void print_text(std::ostream& out, const Result& result);
void print_json(std::ostream& out, const Result& result);
