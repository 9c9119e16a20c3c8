#include "kernels.h"
#include "label_map.h"

namespace segfuse {
namespace {

#define SEGFUSE_LABEL_MAP(Element, name, dtype, classes)                                              \
  entry<LabelMap<Element, classes>, Step::statistics>("label_map.statistics<" name ", " #classes ">", \
                                                      Engine::label_map, dtype, LinkKind::softmax,    \
                                                      PointwiseSet::cross_entropy, false, classes),   \
      entry<LabelMap<Element, classes>, Step::gradient>("label_map.gradient<" name ", " #classes ">", \
                                                        Engine::label_map, dtype, LinkKind::softmax,  \
                                                        PointwiseSet::cross_entropy, false, classes)
#define SEGFUSE_ELEMENTS(classes)                                                                                    \
  SEGFUSE_LABEL_MAP(float, "float32", Dtype::f32, classes), SEGFUSE_LABEL_MAP(Half, "float16", Dtype::f16, classes), \
      SEGFUSE_LABEL_MAP(Bfloat16, "bfloat16", Dtype::bf16, classes)

#define SEGFUSE_FUSED(Element, name, dtype, classes)                                                                  \
  entry<LabelMap<Element, classes>, Step::fused>("label_map.fused<" name ", " #classes ">", Engine::label_map, dtype, \
                                                 LinkKind::softmax, PointwiseSet::cross_entropy, false, classes)
#define SEGFUSE_ALL_FUSED(classes) \
  SEGFUSE_FUSED(float, "float32", Dtype::f32, classes), SEGFUSE_FUSED(Bfloat16, "bfloat16", Dtype::bf16, classes)

// The most usual numbers of classes: small anatomies, BraTS, nnU-Net tasks, Cityscapes, Pascal VOC.
constexpr Kernel kKernels[] = {
    SEGFUSE_ELEMENTS(2),  SEGFUSE_ELEMENTS(3),  SEGFUSE_ELEMENTS(4),   SEGFUSE_ELEMENTS(5),   SEGFUSE_ELEMENTS(6),
    SEGFUSE_ELEMENTS(7),  SEGFUSE_ELEMENTS(8),  SEGFUSE_ELEMENTS(16),  SEGFUSE_ELEMENTS(19),  SEGFUSE_ELEMENTS(21),
    SEGFUSE_ALL_FUSED(2), SEGFUSE_ALL_FUSED(3), SEGFUSE_ALL_FUSED(4),  SEGFUSE_ALL_FUSED(5),  SEGFUSE_ALL_FUSED(6),
    SEGFUSE_ALL_FUSED(7), SEGFUSE_ALL_FUSED(8), SEGFUSE_ALL_FUSED(16), SEGFUSE_ALL_FUSED(19), SEGFUSE_ALL_FUSED(21),
};

}  // namespace

KernelTable label_map_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
