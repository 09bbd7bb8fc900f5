// Memory that is kept from call to call: the C library returns every large buffer to the system, and faulting its pages
// in again costs as much as the arithmetic done on them.
#pragma once

#include <cstddef>

#include "types.h"

namespace penstock {

// A piece of uninitialised memory, aligned to 64 bytes at least; goes back to the kept ones when it dies.
class Block {
 public:
  Block() = default;
  explicit Block(size_t bytes);  // throws std::bad_alloc
  Block(Block&& other) noexcept;
  Block& operator=(Block&& other) noexcept;
  ~Block();

  template <class T>
  PENSTOCK_INLINE T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct WorkspaceUse {
  size_t kept;    // bytes held and not in use
  size_t in_use;  // bytes handed out
  size_t limit;   // `kept` never exceeds it
};

WorkspaceUse workspace_use();
void set_workspace_limit(size_t bytes);
void release_workspace();  // returns all that is kept to the system

}  // namespace penstock
