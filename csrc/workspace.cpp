#include "workspace.h"

#include <pthread.h>
#include <sys/mman.h>

#include <list>
#include <mutex>
#include <new>
#include <utility>

namespace penstock {
namespace {

constexpr size_t kPage = size_t{2} << 20;  // a large page
constexpr size_t kSmall = size_t{64} << 10;

struct Piece {
  void* data;
  size_t size;
};

class Store {
 public:
  Piece take(size_t bytes) {
    const size_t granule = bytes < kPage ? kSmall : kPage;
    const size_t size = (bytes + granule - 1) / granule * granule;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto best = kept_.end();
      for (auto piece = kept_.begin(); piece != kept_.end(); ++piece) {
        // Batches differ in length: a piece up to twice too large serves, one far too large waits for its like.
        if (piece->size < size || piece->size > 2 * size) continue;
        if (best == kept_.end() || piece->size < best->size) best = piece;
      }
      if (best != kept_.end()) {
        const Piece piece = *best;
        kept_.erase(best);
        kept_bytes_ -= piece.size;
        used_bytes_ += piece.size;
        return piece;
      }
    }
    const Piece piece = map(size);
    std::lock_guard<std::mutex> lock(mutex_);
    used_bytes_ += piece.size;
    return piece;
  }

  void give(Piece piece) {
    std::lock_guard<std::mutex> lock(mutex_);
    used_bytes_ -= piece.size;
    kept_bytes_ += piece.size;
    kept_.push_front(piece);
    shrink(limit_);
  }

  void set_limit(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    shrink(limit_);
  }

  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    shrink(0);
  }

  WorkspaceUse use() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {kept_bytes_, used_bytes_, limit_};
  }

  std::mutex& mutex() { return mutex_; }

 private:
  static Piece map(size_t size) {
    // Mapped with a large page to spare, cut to the alignment, so that the kernel can back all of it with large pages.
    const size_t spare = size < kPage ? 0 : kPage;
    void* mapped = mmap(nullptr, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    if (spare == 0) return {mapped, size};
    char* begin = static_cast<char*>(mapped);
    const size_t misaligned = reinterpret_cast<size_t>(begin) % kPage;
    const size_t before = misaligned == 0 ? 0 : kPage - misaligned;
    if (before != 0) munmap(begin, before);
    if (before != spare) munmap(begin + before + size, spare - before);
#ifdef MADV_HUGEPAGE
    madvise(begin + before, size, MADV_HUGEPAGE);
#endif
    return {begin + before, size};
  }

  void shrink(size_t bytes) {
    while (kept_bytes_ > bytes) {
      const Piece piece = kept_.back();
      kept_.pop_back();
      kept_bytes_ -= piece.size;
      munmap(piece.data, piece.size);
    }
  }

  std::mutex mutex_;
  std::list<Piece> kept_;  // last used first
  size_t kept_bytes_ = 0, used_bytes_ = 0, limit_ = size_t{1} << 30;
};

Store& store() {
  static Store* const instance = [] {
    static Store* made = new Store;  // never destroyed: tensors may outlive static objects
    pthread_atfork([] { made->mutex().lock(); }, [] { made->mutex().unlock(); }, [] { made->mutex().unlock(); });
    return made;
  }();
  return *instance;
}

}  // namespace

Block::Block(size_t bytes) {
  const Piece piece = store().take(bytes == 0 ? 1 : bytes);
  data_ = piece.data;
  size_ = piece.size;
}

Block::Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}

Block& Block::operator=(Block&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Block::~Block() {
  if (data_ != nullptr) store().give({data_, size_});
}

WorkspaceUse workspace_use() { return store().use(); }
void set_workspace_limit(size_t bytes) { store().set_limit(bytes); }
void release_workspace() { store().release(); }

}  // namespace penstock
