#include "inputs.h"

#include <stdexcept>

namespace penstock::lstm {

Inputs::Inputs(const Layer& layer) : shared(layer.table != nullptr), rows(layer.tokens) {
  if (!shared) return;
  row_of_id.assign(layer.vocabulary, -1);
  row_of.resize(layer.tokens);
  for (int64_t token = 0; token < layer.tokens; ++token) {
    const int32_t id = layer.ids[token];
    if (id < 0 || id >= layer.vocabulary) {
      throw std::out_of_range("x holds the id " + std::to_string(id) + " at token " + std::to_string(token) +
                              ", embeddings has " + std::to_string(layer.vocabulary) + " rows");
    }
    if (row_of_id[id] < 0) {
      row_of_id[id] = int32_t(ids.size());
      ids.push_back(id);
    }
    row_of[token] = row_of_id[id];
  }
  rows = int64_t(ids.size());
}

Inputs::~Inputs() = default;

TokensOfRows::TokensOfRows(const Inputs& inputs) : start(inputs.rows + 1), tokens(inputs.row_of.size()) {
  for (const int32_t row : inputs.row_of) ++start[row + 1];
  for (int64_t row = 0; row < inputs.rows; ++row) start[row + 1] += start[row];
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (size_t token = 0; token < tokens.size(); ++token) tokens[next[inputs.row_of[token]]++] = int32_t(token);
}

TokensOfRows::~TokensOfRows() = default;

}  // namespace penstock::lstm
