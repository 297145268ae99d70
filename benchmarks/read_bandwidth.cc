// Bytes/s at which `threads` threads read `size` bytes of memory once, summed in registers; the best of `repeats`.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

extern "C" double read_bandwidth(size_t size, int threads, int repeats) {
  typedef uint64_t V __attribute__((vector_size(64)));
  const size_t each = size / sizeof(V) / threads / 4 * 4;
  V* memory = static_cast<V*>(aligned_alloc(64, each * threads * sizeof(V)));
  memset(memory, 1, each * threads * sizeof(V));
  double best = 0;
  for (int r = 0; r < repeats; ++r) {
    std::vector<std::thread> readers;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; ++t)
      readers.emplace_back([=] {
        const V* from = memory + t * each;
        V sum[4] = {};
        for (size_t i = 0; i < each; i += 4)
          for (int lane = 0; lane < 4; ++lane) sum[lane] += from[i + lane];
        V total = sum[0] + sum[1] + sum[2] + sum[3];
        volatile uint64_t keep = total[0];
        (void)keep;
      });
    for (auto& reader : readers) reader.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double rate = each * threads * sizeof(V) / seconds.count();
    best = rate > best ? rate : best;
  }
  free(memory);
  return best;
}
