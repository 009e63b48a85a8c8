// The one place that chooses a micro-kernel.
#include "../formats.h"
#include "kernel.h"
#include "winograd.h"

enum {
  REQUIRES_scalar = 0,
  REQUIRES_scalar_fp16 = SPW_ISA_FP16,
  REQUIRES_neon = SPW_ISA_NEON,
  REQUIRES_neon_dotprod = SPW_ISA_NEON | SPW_ISA_DOTPROD,
  REQUIRES_neon_fp16 = SPW_ISA_NEON | SPW_ISA_FP16,
  REQUIRES_neon_i8mm = SPW_ISA_NEON | SPW_ISA_DOTPROD | SPW_ISA_I8MM,
};

// Away from aarch64 the scalar twins alone are compiled; the other lines keep their place in the table.
#ifdef __aarch64__
#define POINTER_neon(name) name##__neon
#define POINTER_neon_dotprod(name) name##__neon_dotprod
#define POINTER_neon_i8mm(name) name##__neon_i8mm
#define POINTER_neon_fp16(name) name##__neon_fp16
#else
#define POINTER_neon(name) NULL
#define POINTER_neon_dotprod(name) NULL
#define POINTER_neon_i8mm(name) NULL
#define POINTER_neon_fp16(name) NULL
#endif
#define POINTER_scalar(name) name##__scalar
#define POINTER_scalar_fp16(name) name##__scalar_fp16

spw_conv_kernel spw_find_conv_kernel(enum spw_conv_role role, uint32_t instruction_sets) {
  static const struct {
    enum spw_conv_role role;
    uint32_t requires;
    spw_conv_kernel kernel;
  } kernels[] = {
#define SPW_KERNEL(role, name, isa) {SPW_ROLE_##role, REQUIRES_##isa, POINTER_##isa(name)},
#define SPW_UNPACKER(format, name, isa)
#include "kernels.inc"
#undef SPW_KERNEL
#undef SPW_UNPACKER
  };
  for (size_t index = 0; index < sizeof kernels / sizeof *kernels; ++index)
    if (kernels[index].kernel && kernels[index].role == role && !(kernels[index].requires & ~instruction_sets))
      return kernels[index].kernel;
  return NULL;
}

spw_unpack_kernel spw_find_unpack_kernel(int format, uint32_t instruction_sets) {
  static const struct {
    int format;
    uint32_t requires;
    spw_unpack_kernel kernel;
  } kernels[] = {
#define SPW_KERNEL(role, name, isa)
#define SPW_UNPACKER(format, name, isa) {SPW_FORMAT_##format, REQUIRES_##isa, POINTER_##isa(name)},
#include "kernels.inc"
#undef SPW_KERNEL
#undef SPW_UNPACKER
  };
  for (size_t index = 0; index < sizeof kernels / sizeof *kernels; ++index)
    if (kernels[index].kernel && kernels[index].format == format && !(kernels[index].requires & ~instruction_sets))
      return kernels[index].kernel;
  return NULL;
}

spw_winograd_kernel spw_find_winograd_kernel(enum spw_winograd_role role, uint32_t instruction_sets) {
  static const struct {
    enum spw_winograd_role role;
    uint32_t requires;
    spw_winograd_kernel kernel;
  } kernels[] = {
#define SPW_KERNEL(role, name, isa)
#define SPW_UNPACKER(format, name, isa)
#define SPW_WINOGRAD(role, name, isa) {SPW_ROLE_##role, REQUIRES_##isa, POINTER_##isa(name)},
#include "kernels.inc"
#undef SPW_KERNEL
#undef SPW_UNPACKER
  };
  for (size_t index = 0; index < sizeof kernels / sizeof *kernels; ++index)
    if (kernels[index].kernel && kernels[index].role == role && !(kernels[index].requires & ~instruction_sets))
      return kernels[index].kernel;
  return NULL;
}
