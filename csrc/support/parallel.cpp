// SPDX-License-Identifier: Apache-2.0
#include "support/parallel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace detent {
namespace {

int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int checked_count(long count) {
  if (count < 1 || count > 4096) {
    throw std::invalid_argument("number of threads must be in 1..4096, got " + std::to_string(count));
  }
  return static_cast<int>(count);
}

std::atomic<int>& count_slot() {
  static std::atomic<int> slot{[] {
    const char* forced = std::getenv("DETENT_NUM_THREADS");
    if (!forced || !*forced) return usable_cpus();
    char* rest = nullptr;
    const long count = std::strtol(forced, &rest, 10);
    if (*rest)
      throw std::invalid_argument("DETENT_NUM_THREADS must be a whole number, got '" + std::string(forced) + "'");
    return checked_count(count);
  }()};
  return slot;
}

thread_local int calling_thread_limit = std::numeric_limits<int>::max();

}  // namespace

int num_threads() { return std::min(count_slot().load(std::memory_order_relaxed), calling_thread_limit); }

void set_num_threads(int count) { count_slot().store(checked_count(count)); }

void limit_threads(int count) { calling_thread_limit = checked_count(count); }

void parallel_slices(int64_t tasks, int64_t min_tasks_per_thread, void (*body)(const void*, int64_t, int64_t),
                     const void* context) {
  if (tasks <= 0) return;
  const int64_t useful = std::max<int64_t>(1, tasks / std::max<int64_t>(1, min_tasks_per_thread));
  const int threads = static_cast<int>(std::min<int64_t>(num_threads(), useful));
  if (threads == 1) return body(context, 0, tasks);

  std::vector<std::exception_ptr> errors(static_cast<size_t>(threads));
  const auto run = [&](int t) {
    try {
      body(context, tasks * t / threads, tasks * (t + 1) / threads);
    } catch (...) {
      errors[static_cast<size_t>(t)] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads - 1));
  int started = 1;
  try {
    for (; started < threads; ++started) others.emplace_back(run, started);
  } catch (const std::system_error&) {
    // The system gives no more threads: this one does the rest. The result is the same.
    for (int t = started; t < threads; ++t) run(t);
  }
  run(0);
  for (std::thread& thread : others) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace detent
