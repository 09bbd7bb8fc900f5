// The rows that the input weights multiply: the tokens' own, or one for each distinct id.
#pragma once

#include <string>
#include <vector>

#include "layer.h"

namespace penstock::lstm {

struct Inputs {
  bool shared;                     // whether tokens of one id share a row; else every token has its own
  int64_t rows;                    // to multiply
  std::vector<int32_t> ids;        // (rows), distinct, in the order of their first tokens, if shared
  std::vector<int32_t> row_of;     // (tokens), the row of each token, if shared
  std::vector<int32_t> row_of_id;  // (vocabulary), -1 for an id that no token has, if shared

  // Throws std::out_of_range if an id is not a row of the table.
  explicit Inputs(const Layer& layer);
  ~Inputs();  // not inline, see isa.h
};

// The tokens of each row, in order: those of row r are tokens[start[r]] ... tokens[start[r + 1] - 1].
struct TokensOfRows {
  std::vector<int64_t> start;   // (rows + 1)
  std::vector<int32_t> tokens;  // (tokens)

  explicit TokensOfRows(const Inputs& inputs);
  ~TokensOfRows();
};

}  // namespace penstock::lstm
