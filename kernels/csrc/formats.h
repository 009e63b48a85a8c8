// Packed weights as they lie in memory: this header, then sections aligned to 64 bytes. kernels/formats.py writes and
// documents them; a reader trusts the sizes only after spw_weights_check().
#ifndef SPW_FORMATS_H
#define SPW_FORMATS_H

#include <stddef.h>
#include <stdint.h>

enum {
  SPW_WEIGHTS_MAGIC = 0x4b575053,  // "SPWK" read as a little-endian word
  SPW_WEIGHTS_VERSION = 2,
  SPW_F32_PANEL_CHANNELS = 8,  // output channels of a panel of float or half; 4 of int8 and depthwise
  SPW_CODEBOOK_ENTRIES = 16,
};

enum spw_weight_format {
  SPW_FORMAT_QS8C = 0,  // int8, one scale for each output channel
  SPW_FORMAT_CB4T = 1,  // 4-bit index into one int8 table
  SPW_FORMAT_CB2T = 2,  // 2-bit index into one int8 table
  SPW_FORMAT_F32 = 3,
  SPW_FORMAT_F16 = 4,
};

enum spw_block_pattern {
  SPW_PATTERN_DENSE = 0,
  SPW_PATTERN_4X4 = 1,   // zero blocks of 4 output x 4 input channels are left out
  SPW_PATTERN_ROWS = 2,  // one group of fewer than 4 input channels; taps are made of rows of the window
};

struct spw_weights_header {
  uint32_t magic;
  uint16_t version;
  uint8_t format;   // enum spw_weight_format
  uint8_t pattern;  // enum spw_block_pattern
  uint32_t out_channels, in_channels;
  uint16_t kernel_height, kernel_width;
  uint32_t groups;
  uint16_t panel_channels;    // SPW_F32_PANEL_CHANNELS or SPW_CHANNEL_PACK
  uint16_t codebook_entries;  // 0 without a codebook
  uint32_t codebook_offset;   // int8 [16], zero past the last entry
  uint32_t values_offset, values_bytes;
  uint32_t initial_offset;  // int32 [channels, padded to 4], padding zero
  uint32_t scale_offset;    // float [channels, padded to 4], padding zero
  uint32_t bias_offset;     // float [channels, padded to 4], padding zero
  uint32_t total_bytes;
  uint32_t sparsity_offset;  // uint32 [panels + 1] first block of each, uint8 [blocks] steps; 0 if dense
  uint32_t checksum;         // CRC-32 of everything but these last four bytes of the header
};
_Static_assert(sizeof(struct spw_weights_header) == 64, "kernels/formats.py writes 64 bytes");
_Static_assert(offsetof(struct spw_weights_header, codebook_offset) == 28, "kernels/formats.py");
_Static_assert(offsetof(struct spw_weights_header, checksum) == 60, "kernels/formats.py");

// Blocks of 16 weights whose indices share 16 bytes.
static inline size_t spw_shared_blocks(enum spw_weight_format format) {
  return format == SPW_FORMAT_CB4T ? 2 : format == SPW_FORMAT_CB2T ? 4 : 1;
}

// Bytes that a stream or a panel of `count` weights takes, padded to whole groups of blocks that share 16 bytes.
static inline size_t spw_panel_bytes(enum spw_weight_format format, size_t count) {
  const size_t shared = 16 * spw_shared_blocks(format);
  if (format == SPW_FORMAT_F16) return count * sizeof(uint16_t);
  return format == SPW_FORMAT_F32 ? count * sizeof(float) : (count + shared - 1) / shared * 16;
}

// Taps of a window with SPW_PATTERN_ROWS: every 4 weights of a row, and for each weight that a row has left one for every
// 4 rows.
static inline size_t spw_row_taps(size_t channels, size_t kernel_height, size_t kernel_width) {
  const size_t row = kernel_width * channels;
  return kernel_height * (row / 4) + row % 4 * ((kernel_height + 3) / 4);
}

static inline const void *spw_weights_section(const struct spw_weights_header *header, uint32_t offset) {
  return (const unsigned char *)header + offset;
}

#endif
