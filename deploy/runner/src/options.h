// The command line.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

// What the user gave cannot be used.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string model;
  std::string input;
  std::string write;  // folder for the outputs; empty: none
  int top = 5;
  int runs = 0;
  int warmup = 3;
  bool json = false;
};

// Nothing when the user asked for help; throws InputError.
std::optional<Options> parse_options(int argc, char** argv);
const char* usage();
