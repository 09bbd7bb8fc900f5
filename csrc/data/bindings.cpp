#include "bindings.h"

#include <fcntl.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "data/plan.h"
#include "data/prefetch.h"
#include "data/shards.h"

namespace py = pybind11;

namespace penstock {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
py::array to_numpy(std::vector<T>&& items) {
  auto owned = std::make_unique<std::vector<T>>(std::move(items));
  const auto size = static_cast<py::ssize_t>(owned->size());
  T* data = owned->data();
  py::capsule owner(owned.release(), [](void* vector) { delete static_cast<std::vector<T>*>(vector); });
  return Array<T>(size, data, owner);
}

py::tuple bound_plan_epoch(const Array<int32_t>& lengths, const std::optional<Array<int64_t>>& rows, uint64_t seed,
                           uint64_t epoch, int64_t tokens_per_batch, int64_t batches_per_step, int64_t window_batches,
                           bool shuffle, bool worst_first) {
  if (tokens_per_batch < 1 || batches_per_step < 1 || window_batches < 0)
    throw std::invalid_argument("tokens_per_batch and batches_per_step must be positive, window_batches not negative");
  if (rows) {
    for (py::ssize_t i = 0; i < rows->size(); ++i)
      if (rows->data()[i] < 0 || rows->data()[i] >= lengths.size())
        throw std::invalid_argument("row " + std::to_string(rows->data()[i]) + " of " + std::to_string(lengths.size()));
  }
  Plan plan;
  {
    const int64_t count = rows ? rows->size() : lengths.size();
    const int64_t* row_data = rows ? rows->data() : nullptr;
    const int32_t* length_data = lengths.data();
    py::gil_scoped_release release;
    plan = plan_epoch(length_data, row_data, count, seed, epoch,
                      {tokens_per_batch, batches_per_step, window_batches, shuffle, worst_first});
  }
  return py::make_tuple(to_numpy(std::move(plan.order)), to_numpy(std::move(plan.bounds)),
                        to_numpy(std::move(plan.tokens)), to_numpy(std::move(plan.squares)),
                        to_numpy(std::move(plan.longest)));
}

// Shards with the Python objects that own their memory.
struct BoundShards {
  Shards shards;
  int64_t width;
  std::vector<py::object> owners;

  BoundShards(int width_, int64_t vocab_size) : shards(width_, vocab_size), width(width_) {}

  void add_mapped(const std::string& name, const py::buffer& values, const Array<int64_t>& offsets) {
    const py::buffer_info info = values.request();
    if (info.ndim != 1 || info.itemsize != width) throw std::invalid_argument(name + ": tokens of another width");
    if (offsets.size() < 1) throw std::invalid_argument(name + ": offsets must not be empty");
    Shard shard{name, offsets.size() - 1, info.size, info.ptr, offsets.data()};
    owners.push_back(values);
    owners.push_back(offsets);
    shards.add(std::move(shard));
  }

  void add_file(const std::string& name, const std::string& path, int64_t rows, int64_t tokens, int64_t values_at,
                int64_t offsets_at) {
    Shard shard{name, rows, tokens};
    shard.file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (shard.file < 0) throw std::runtime_error(name + ": cannot be opened: " + std::strerror(errno));
    shard.values_at = values_at;
    shard.offsets_at = offsets_at;
    shards.add(std::move(shard));
  }
};

// Head and tail of a cut; None cuts nothing.
using BoundCut = std::optional<std::pair<int64_t, int64_t>>;

Task make_task(const Shards& shards, const Array<int64_t>& rows, const Array<int64_t>& all_labels, uintptr_t values,
               int64_t capacity, uintptr_t cu_seqlens, uintptr_t labels, const BoundCut& cut) {
  if (cut && (cut->first < 0 || cut->second < 0 || cut->first > std::numeric_limits<int64_t>::max() - cut->second))
    throw std::invalid_argument("a cut's head and tail must not be negative");
  if (all_labels.size() != shards.rows())
    throw std::invalid_argument("labels and shards differ in their number of rows");
  return {rows.data(),
          rows.size(),
          all_labels.data(),
          cut ? Cut{cut->first, cut->second} : Cut{},
          reinterpret_cast<int32_t*>(values),
          capacity,
          reinterpret_cast<int32_t*>(cu_seqlens),
          reinterpret_cast<int64_t*>(labels)};
}

// Batches in the order of their submission. Each keeps the objects it reads from and writes to alive until it is
// popped; they are let go under the GIL only, never by a worker.
class BoundPrefetcher {
 public:
  BoundPrefetcher(const BoundShards& shards, int threads)
      : shards_(shards.shards), prefetcher_(std::make_unique<Prefetcher>(shards.shards, threads)) {}

  ~BoundPrefetcher() {
    py::gil_scoped_release release;
    if (is_copy())
      (void)prefetcher_.release();  // its threads are not here: who waits for them, or for who waits, waits for ever
    else
      prefetcher_.reset();
  }

  void submit(const Array<int64_t>& rows, const Array<int64_t>& all_labels, uintptr_t values, int64_t capacity,
              uintptr_t cu_seqlens, uintptr_t labels, py::object result, const BoundCut& cut) {
    check_process();
    auto task = std::make_shared<Task>(make_task(shards_, rows, all_labels, values, capacity, cu_seqlens, labels, cut));
    pending_.push_back({task, py::make_tuple(rows, all_labels), std::move(result)});
    prefetcher_->submit(std::move(task));
  }

  py::object pop() {
    check_process();
    if (pending_.empty()) throw py::index_error("nothing was submitted");
    {
      const Task& task = *pending_.front().task;
      py::gil_scoped_release release;
      prefetcher_->wait(task);
    }
    const Pending first = std::move(pending_.front());
    pending_.pop_front();
    if (first.task->error) std::rethrow_exception(first.task->error);
    return first.result;
  }

  size_t size() const { return pending_.size(); }

 private:
  struct Pending {
    std::shared_ptr<Task> task;
    py::object inputs, result;
  };

  // Whether this is a forked child, which inherits the object but not its threads.
  bool is_copy() const { return getpid() != made_by_; }

  void check_process() const {
    if (is_copy()) throw py::value_error("these batches were begun in another process: begin to iterate again here");
  }

  const pid_t made_by_ = getpid();
  const Shards& shards_;
  std::deque<Pending> pending_;
  std::unique_ptr<Prefetcher> prefetcher_;
};

}  // namespace

void bind_data(py::module_& module) {
  module.def("plan_epoch", &bound_plan_epoch, py::arg("lengths").noconvert(), py::arg("rows").noconvert(),
             py::arg("seed"), py::arg("epoch"), py::arg("tokens_per_batch"), py::arg("batches_per_step"),
             py::arg("window_batches"), py::arg("shuffle").noconvert(), py::arg("worst_first").noconvert(),
             "The batches of one epoch: (order, bounds, tokens, squares, longest), see csrc/data/plan.h.");

  py::class_<BoundShards>(module, "Shards", "The token buffers of a store's shards.")
      .def(py::init<int, int64_t>(), py::arg("width"), py::arg("vocab_size"))
      .def("add_mapped", &BoundShards::add_mapped, py::arg("name"), py::arg("values"), py::arg("offsets").noconvert())
      .def("add_file", &BoundShards::add_file, py::arg("name"), py::arg("path"), py::arg("rows"), py::arg("tokens"),
           py::arg("values_at"), py::arg("offsets_at"))
      .def(
          "gather",
          [](const BoundShards& self, const Array<int64_t>& rows, const Array<int64_t>& all_labels, uintptr_t values,
             int64_t capacity, uintptr_t cu_seqlens, uintptr_t labels, const BoundCut& cut) {
            Task task = make_task(self.shards, rows, all_labels, values, capacity, cu_seqlens, labels, cut);
            py::gil_scoped_release release;
            run(self.shards, task);
          },
          py::arg("rows").noconvert(), py::arg("all_labels").noconvert(), py::arg("values"), py::arg("capacity"),
          py::arg("cu_seqlens"), py::arg("labels"), py::arg("cut") = py::none(),
          "Fills one batch in the calling thread, the GIL released.");

  py::class_<BoundPrefetcher>(module, "Prefetcher", "Threads that fill batches ahead of their consumer.")
      .def(py::init<const BoundShards&, int>(), py::arg("shards"), py::arg("threads"), py::keep_alive<1, 2>())
      .def("submit", &BoundPrefetcher::submit, py::arg("rows").noconvert(), py::arg("all_labels").noconvert(),
           py::arg("values"), py::arg("capacity"), py::arg("cu_seqlens"), py::arg("labels"), py::arg("result"),
           py::arg("cut") = py::none(), "Queues a batch; `result` is kept alive and handed back by `pop`.")
      .def("pop", &BoundPrefetcher::pop, "Waits for the oldest batch, the GIL released, and returns its result.")
      .def("__len__", &BoundPrefetcher::size);
}

}  // namespace penstock
