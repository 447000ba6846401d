// Requests, sectors and bank conflicts. The k-th access that each lane of a warp makes from one place of the
// code is one request.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <unordered_set>

#include "host.h"

namespace cuda_host {
namespace {

struct Request {
  uintptr_t addresses[32];
  int lanes = 0;
  size_t bytes = 0;
  bool write = false, shared = false;
};

std::map<std::tuple<const void*, int, unsigned>, Request> requests;  // by place, warp and k
std::map<std::pair<const void*, int>, unsigned> times;               // that a thread has been at a place
std::unordered_set<uintptr_t> read_sectors, written_sectors;

constexpr uintptr_t kSector = 32, kBank = 4, kBanks = 32;

std::set<uintptr_t> units(const Request& r, uintptr_t size) {
  std::set<uintptr_t> found;
  for (int i = 0; i < r.lanes; ++i)
    for (uintptr_t at = r.addresses[i] / size; at <= (r.addresses[i] + r.bytes - 1) / size; ++at)
      found.insert(at);
  return found;
}

void add_shared(const Request& r) {
  const std::set<uintptr_t> words = units(r, kBank);
  unsigned by_bank[kBanks] = {};
  for (uintptr_t word : words) ++by_bank[word % kBanks];
  Counters& c = counters();
  ++c.shared_requests;
  c.shared_wavefronts += *std::max_element(by_bank, by_bank + kBanks);
  c.ideal_shared_wavefronts += (words.size() + kBanks - 1) / kBanks;
}

void add_global(const Request& r) {
  const std::set<uintptr_t> sectors = units(r, kSector);
  // lanes may read one place together
  const uint64_t bytes = std::set<uintptr_t>(r.addresses, r.addresses + r.lanes).size() * r.bytes;
  const uint64_t ideal = (bytes + kSector - 1) / kSector;
  Counters& c = counters();
  (r.write ? c.store_requests : c.load_requests) += 1;
  (r.write ? c.store_sectors : c.load_sectors) += sectors.size();
  (r.write ? c.ideal_store_sectors : c.ideal_load_sectors) += ideal;
  (r.write ? written_sectors : read_sectors).insert(sectors.begin(), sectors.end());
}

}  // namespace

Counters& counters() {
  static Counters c;
  return c;
}

void count_transcendental() { ++counters().transcendentals; }

void count(uintptr_t address, size_t bytes, bool write, bool shared, const void* pc) {
  const Thread& t = current();
  const unsigned k = times[{pc, t.number}]++;
  Request& r = requests[{pc, t.warp, k}];
  r.addresses[r.lanes++] = address;
  r.bytes = bytes;
  r.write = write;
  r.shared = shared;
}

void finish_block_counters() {
  for (const auto& [key, request] : requests) request.shared ? add_shared(request) : add_global(request);
  requests.clear();
  times.clear();
}

void finish_launch_counters() {
  counters().distinct_sectors_read += read_sectors.size();
  counters().distinct_sectors_written += written_sectors.size();
  read_sectors.clear();
  written_sectors.clear();
}

}  // namespace cuda_host
