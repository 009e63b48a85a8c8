// Checks packed weights before anything trusts their sizes.
#include "formats.h"

#include "spw.h"

// CRC-32 of Ethernet and zlib, polynomial 0xEDB88320, a byte at a time. The table is made for each check, which costs
// less than the smallest layer: a constant one would be 1 KB of unreadable source.
static uint32_t crc32_of(uint32_t crc, const uint32_t table[256], const unsigned char *data, size_t bytes) {
  for (size_t index = 0; index < bytes; ++index) crc = (crc >> 8) ^ table[(crc ^ data[index]) & 255];
  return crc;
}

static uint32_t checksum(const struct spw_weights_header *header) {
  uint32_t table[256];
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ (remainder & 1 ? 0xEDB88320u : 0);
    table[byte] = remainder;
  }
  const unsigned char *data = (const unsigned char *)header;
  uint32_t crc = crc32_of(0xFFFFFFFFu, table, data, offsetof(struct spw_weights_header, checksum));
  return ~crc32_of(crc, table, data + sizeof *header, header->total_bytes - sizeof *header);
}

static int outside(const struct spw_weights_header *header, uint32_t offset, size_t bytes) {
  return offset % 64 || offset < sizeof *header || offset > header->total_bytes || header->total_bytes - offset < bytes;
}

// Whether the lists of a sparse panel's blocks stay within the section and the window. `bytes` are left for them.
static int lists_are_sound(const struct spw_weights_header *header, size_t panels, size_t taps, size_t bytes) {
  if (bytes / sizeof(uint32_t) < panels + 1) return 0;
  const uint32_t *first = spw_weights_section(header, header->sparsity_offset);
  const uint8_t *steps = (const uint8_t *)(first + panels + 1);
  if (first[0] != 0 || bytes - sizeof(uint32_t) * (panels + 1) < first[panels]) return 0;
  for (size_t panel = 0; panel < panels; ++panel) {
    if (first[panel] > first[panel + 1] || first[panel + 1] > first[panels]) return 0;
    size_t tap = 0;
    for (uint32_t block = first[panel]; block < first[panel + 1]; ++block) {
      // Steps of at least one: no more blocks than taps, for which a kernel's workspace has room.
      if (block > first[panel] && steps[block] == 0) return 0;
      if ((tap += steps[block]) >= taps) return 0;
    }
  }
  return 1;
}

const char *spw_weights_check(const struct spw_conv2d *operator, const void *weights, size_t weights_bytes) {
  const struct spw_weights_header *header = weights;
  if ((uintptr_t)weights % 16) return "packed weights are not aligned to 16 bytes";
  if (weights_bytes < sizeof *header) return "packed weights are shorter than their header";
  if (header->magic != SPW_WEIGHTS_MAGIC) return "packed weights do not begin with SPWK";
  if (header->version != SPW_WEIGHTS_VERSION) return "packed weights have another version";
  if (header->total_bytes != weights_bytes) return "packed weights have another size than their header says";
  if (header->format > SPW_FORMAT_F16) return "packed weights have an unknown format";
  if (header->pattern > SPW_PATTERN_ROWS) return "packed weights have an unknown block pattern";
  if (header->checksum != checksum(header)) return "packed weights have a wrong checksum";
  if ((header->format == SPW_FORMAT_F32) != (operator->type == SPW_CONV2D_F32) ||
      (header->format == SPW_FORMAT_F16) != (operator->type == SPW_CONV2D_F16))
    return "packed weights are of another type than the operator";
  if (header->out_channels != (uint32_t)operator->out_channels ||
      header->in_channels != (uint32_t)operator->in_channels || header->kernel_height != operator->kernel_height ||
      header->kernel_width != operator->kernel_width || header->groups != (uint32_t)operator->groups ||
      header->groups == 0)
    return "packed weights have another shape than the operator";
  const int depthwise = header->groups > 1 && header->groups == header->in_channels;
  if (depthwise ? header->out_channels != header->groups
                : header->groups > 1 &&
                      (header->in_channels % (4 * header->groups) || header->out_channels % (4 * header->groups)))
    return "channels of a group are no multiple of 4";
  const int is_float = header->format == SPW_FORMAT_F32 || header->format == SPW_FORMAT_F16,
            sparse = header->pattern == SPW_PATTERN_4X4, by_rows = header->pattern == SPW_PATTERN_ROWS;
  if (sparse && (depthwise || is_float)) return "packed weights of this kind cannot be sparse";
  if (by_rows && (header->groups > 1 || header->in_channels >= SPW_CHANNEL_PACK || operator->dilation_height > 1 ||
                  operator->dilation_width > 1))
    return "packed weights are made of rows and the window is not";
  if (header->panel_channels != (is_float && !depthwise ? SPW_F32_PANEL_CHANNELS : SPW_CHANNEL_PACK))
    return "packed weights have another panel width";
  const int indexed = header->format == SPW_FORMAT_CB4T || header->format == SPW_FORMAT_CB2T;
  if (indexed != (header->codebook_entries > 0) || header->codebook_entries > SPW_CODEBOOK_ENTRIES)
    return "packed weights have a codebook that does not fit their format";
  const size_t channel_bytes = ((size_t)header->out_channels + 3) / 4 * 16;
  const size_t area = (size_t)header->kernel_height * header->kernel_width;
  const size_t taps = depthwise ? area
                      : by_rows ? spw_row_taps(header->in_channels, header->kernel_height, header->kernel_width)
                                : (header->in_channels / header->groups + 3) / 4 * area;
  const size_t packs =
      depthwise ? (header->out_channels + 3) / 4 : header->groups * ((header->out_channels / header->groups + 3) / 4);
  const enum spw_weight_format format = (enum spw_weight_format)header->format;
  size_t blocks = packs * taps;
  if (sparse) {
    const uint32_t offset = header->sparsity_offset;
    if (outside(header, offset, 0) || !lists_are_sound(header, packs, taps, header->total_bytes - offset))
      return "packed weights have a list of blocks that does not fit their shape";
    blocks = ((const uint32_t *)spw_weights_section(header, offset))[packs];
  } else if (header->sparsity_offset != 0) {
    return "packed weights have a list of blocks and are dense";
  }
  const size_t values = depthwise ? packs * spw_panel_bytes(format, 4 * taps) : spw_panel_bytes(format, 16 * blocks);
  if (header->values_bytes != values || outside(header, header->codebook_offset, SPW_CODEBOOK_ENTRIES) ||
      outside(header, header->values_offset, header->values_bytes) ||
      outside(header, header->initial_offset, channel_bytes) || outside(header, header->scale_offset, channel_bytes) ||
      outside(header, header->bias_offset, channel_bytes))
    return "packed weights have a section outside their bytes";
  return NULL;
}
