#include "openmp.h"

#include <dlfcn.h>
#include <unistd.h>

#include <initializer_list>

namespace penstock {
namespace {

template <class Function>
void find(Function& function, void* library, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

OpenMP symbols(void* library) {
  OpenMP found{};
  find(found.parallel, library, "GOMP_parallel");
  find(found.get_thread_num, library, "omp_get_thread_num");
  find(found.get_num_threads, library, "omp_get_num_threads");
  find(found.get_num_procs, library, "omp_get_num_procs");
  find(found.set_blocktime, library, "kmp_set_blocktime");
  find(found.get_blocktime, library, "kmp_get_blocktime");
  return found;
}

// Found in whichever OpenMP library is loaded already, under the names that builds of torch give it; never loads one.
OpenMP loaded_openmp() {
  for (const char* name :
       {"libgomp.so.1", "libgomp.so", "libiomp5.so", "libomp.so", "libomp.dylib", "libiomp5.dylib"}) {
    void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    const OpenMP found = symbols(library);
    if (found.parallel != nullptr) return found;
    dlclose(library);
  }
  return symbols(RTLD_DEFAULT);
}

const pid_t loaded_by = getpid();

}  // namespace

const OpenMP& openmp() {
  static const OpenMP found = loaded_openmp(), none{};
  return getpid() == loaded_by ? found : none;
}

}  // namespace penstock
