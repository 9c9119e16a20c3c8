// What each lane gets from a collective of its warp.
#include "grid.h"

namespace segfuse_shim {

void exchange(Warp& warp, unsigned mask, Op op, Site site) {
  uint64_t results[32] = {};
  unsigned ballot = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1u) ballot |= unsigned(warp.value[i] & 1u) << i;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1u)) continue;
    const int lane = int(i), argument = warp.argument[i], width = warp.width[i];
    const int base = lane & ~(width - 1), top = base + width - 1;
    int source = lane;
    switch (op) {
      case Op::ballot:
        results[i] = ballot;
        break;
      case Op::any:
        results[i] = ballot != 0;
        break;
      case Op::all:
        results[i] = ballot == mask;
        break;
      case Op::match_any:
        for (unsigned j = 0; j < 32; ++j)
          if ((mask >> j & 1u) && warp.value[j] == warp.value[i]) results[i] |= 1u << j;
        break;
      case Op::shuffle:
        source = base + (argument & (width - 1));
        break;
      case Op::shuffle_up:  // a source beyond the segment: the lane keeps its own value
        if (unsigned(argument) <= unsigned(lane - base)) source = lane - argument;
        break;
      case Op::shuffle_down:
        if (unsigned(argument) <= unsigned(top - lane)) source = lane + argument;
        break;
      case Op::shuffle_xor:
        if ((lane ^ (argument & 31)) <= top) source = lane ^ (argument & 31);
        break;
      default:
        break;
    }
    if (op < Op::shuffle || op > Op::shuffle_xor) continue;
    if (!(mask >> source & 1u))
      give_up(text("%s at %s: lane %d reads lane %d, which is not in the mask 0x%08x", name(op), text(site).c_str(),
                   lane, source, mask),
              run.current->block);
    results[i] = warp.value[source];
  }
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1u) warp.value[i] = results[i];
}

}  // namespace segfuse_shim
