// SPDX-License-Identifier: Apache-2.0
// parallel_for over a range of independent tasks. The split into tasks is the caller's and never depends on the number
// of threads, so that results do not either.
//
// Threads are started for each call that is worth it and joined before it returns: no pool to keep, to leak or to lose
// in a fork. Starting one costs about 15 us, hence `min_tasks_per_thread`. A task that throws: the first exception is
// rethrown in the caller after all threads have ended.
#pragma once

#include <cstdint>
#include <type_traits>

namespace detent {

// Threads a call from this thread may use: DETENT_NUM_THREADS, else the CPUs this process may run on, within the limit
// of the calling thread.
int num_threads();

// Throws std::invalid_argument unless count >= 1.
void set_num_threads(int count);

// At most `count` threads for calls from this thread from now on: for a caller that splits the work itself.
// Throws std::invalid_argument unless count >= 1.
void limit_threads(int count);

// body(context, begin, end) for consecutive slices of [0, tasks).
void parallel_slices(int64_t tasks, int64_t min_tasks_per_thread, void (*body)(const void*, int64_t, int64_t),
                     const void* context);

// body(i) for every i in [0, tasks).
template <class Body>
inline void parallel_for(int64_t tasks, int64_t min_tasks_per_thread, const Body& body) {
  parallel_slices(
      tasks, min_tasks_per_thread,
      [](const void* context, int64_t begin, int64_t end) {
        const Body& run = *static_cast<const Body*>(context);
        for (int64_t i = begin; i < end; ++i) run(i);
      },
      &body);
}

}  // namespace detent
