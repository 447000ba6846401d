// The entry points of the losses on distances with labels. Compiled once per instruction set.
#include "cpu/margin.h"

namespace thawkit {
namespace THAWKIT_ISA {

int64_t margin_workspace(const MarginArgs& a) { return MarginRun(a, 0).workspace_floats; }

void margin(const MarginArgs& a) { margin_panels(a); }

}  // namespace THAWKIT_ISA
}  // namespace thawkit
