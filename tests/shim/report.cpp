// What the shim says before it aborts.
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "grid.h"

namespace segfuse_shim {

std::string text(const char* format, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

std::string text(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return text("%s:%d", slash ? slash + 1 : site.file, site.line);
}

const char* name(Op op) {
  static const char* const names[] = {
      "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count", "bar.sync",
      "__syncwarp",    "__shfl_sync",      "__shfl_up_sync",    "__shfl_down_sync",    "__shfl_xor_sync",
      "__ballot_sync", "__any_sync",       "__all_sync",        "__match_any_sync",    "nothing"};
  return names[int(op)];
}

// Kernels are rarely exported, so dladdr alone seldom knows their names; addr2line reads the full symbol table.
std::string name_of(const void* function) {
  Dl_info info;
  if (!dladdr(function, &info) || !info.dli_fname) return text("%p", function);
  if (info.dli_sname && info.dli_saddr == function) {
    char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
    const std::string result = demangled ? demangled : info.dli_sname;
    std::free(demangled);
    return result;
  }
  const size_t offset = size_t(static_cast<const char*>(function) - static_cast<char*>(info.dli_fbase));
  std::string found;
  if (FILE* pipe = popen(text("addr2line -Cfe '%s' 0x%zx 2>/dev/null", info.dli_fname, offset).c_str(), "r")) {
    char line[400];
    if (std::fgets(line, sizeof line, pipe)) found.assign(line, std::strcspn(line, "\n"));
    pclose(pipe);
  }
  return found.empty() || found[0] == '?' ? text("%s+0x%zx", info.dli_fname, offset) : found;
}

static std::string state_of(const Thread& t) {
  const Warp& warp = t.block->warps[t.warp];
  if (warp.exited >> t.lane & 1u) return "exited";
  if (warp.ready >> t.lane & 1u) return "ready";
  if (t.op == Op::none) return "running";
  std::string where = std::string("at ") + name(t.op) + " " + text(t.site);
  return t.op < Op::warp_sync ? where : where + text(" with mask 0x%08x", t.mask);
}

void give_up(const std::string& what, const Block* block) {
  std::string report = "segfuse shim: " + what + "\n  kernel " + name_of(run.kernel);
  report +=
      text("\n  grid (%u, %u, %u), block size (%u, %u, %u), SEGFUSE_SHIM_SEED %llu, launch %llu", gridDim.x, gridDim.y,
           gridDim.z, blockDim.x, blockDim.y, blockDim.z, (unsigned long long)run.seed, (unsigned long long)run.number);
  if (run.current) {
    const uint3 b = run.current->block->index, t = run.current->index;
    report += text("\n  in block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
  }
  if (block) {
    std::vector<std::pair<std::string, std::string>> groups;  // state, the numbers of its threads
    for (size_t i = 0, next; i < block->threads.size(); i = next) {
      const std::string state = state_of(block->threads[i]);
      for (next = i + 1; next < block->threads.size() && state_of(block->threads[next]) == state;) ++next;
      auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == state; });
      if (group == groups.end()) group = groups.insert(group, {state, ""});
      group->second +=
          (group->second.empty() ? "" : ",") + (next - i == 1 ? text("%zu", i) : text("%zu-%zu", i, next - 1));
    }
    for (const auto& [state, numbers] : groups) report += "\n  threads " + numbers + " " + state;
  }
  std::fprintf(stderr, "%s\n", report.c_str());
  std::fflush(stderr);
  std::abort();
}

void report_stuck(const Block& block) {
  for (const Thread& t : block.threads) {
    const Warp& warp = block.warps[t.warp];
    if (!(warp.waiting >> t.lane & 1u)) continue;
    for (unsigned lane = 0; lane < 32; ++lane) {
      const Thread& other = warp.threads[lane];
      if (!(t.mask >> lane & 1u) || (other.op == t.op && same(other.site, t.site) && other.mask == t.mask)) continue;
      const bool only_mask = other.op == t.op && same(other.site, t.site) && (warp.waiting >> lane & 1u);
      give_up(text("%s at %s: %s lane %u, which is %s", name(t.op), text(t.site).c_str(),
                   only_mask ? "the lanes disagree on the mask; it names" : "the mask names", lane,
                   state_of(other).c_str()),
              &block);
    }
  }
  for (int id = 0; id < 16; ++id)
    if (!block.part[id].empty())
      give_up(text("divergent bar.sync: %zu threads wait at barrier %d for more", block.part[id].size(), id), &block);
  give_up(text("divergent __syncthreads: %u threads wait at %s, %s", block.arrived,
               block.mixed ? "different barriers" : "a barrier",
               block.exited ? text("%u have exited", block.exited).c_str() : "none has exited"),
          &block);
}

void fail(const char* what, Site site) { give_up(what + std::string(" at ") + text(site)); }
void fail_alignment(const void* address, size_t size, Site site) {
  give_up(text("misaligned access at %s: %zu bytes at %p", text(site).c_str(), size, address));
}

}  // namespace segfuse_shim
