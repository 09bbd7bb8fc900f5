// A fuzz target's driver where there is no libFuzzer: random inputs, `./program COUNT`.
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int, char** arguments) {
  std::mt19937 random(1);
  for (long left = std::atol(arguments[1]); left > 0; --left) {
    std::vector<uint8_t> input(random() % 1500);
    for (auto& byte : input) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
}
