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
  return offset % 64 || offset < sizeof *header || offset > header->total_bytes ||
         header->total_bytes - offset < bytes;
}

static size_t values_bytes(const struct spw_weights_header *header, int depthwise) {
  const enum spw_weight_format format = (enum spw_weight_format)header->format;
  const size_t area = (size_t)header->kernel_height * header->kernel_width;
  if (depthwise) return (header->out_channels + 3) / 4 * spw_panel_bytes(format, area * SPW_CHANNEL_PACK);
  const size_t out_packs = (header->out_channels / header->groups + 3) / 4;
  const size_t pack_weights = (header->in_channels / header->groups + 3) / 4 * area * 16;
  return header->groups * (out_packs / 2 * spw_panel_bytes(format, 2 * pack_weights) +
                           out_packs % 2 * spw_panel_bytes(format, pack_weights));
}

const char *spw_weights_check(const struct spw_conv2d *operator, const void *weights, size_t weights_bytes) {
  const struct spw_weights_header *header = weights;
  if ((uintptr_t)weights % 16) return "packed weights are not aligned to 16 bytes";
  if (weights_bytes < sizeof *header) return "packed weights are shorter than their header";
  if (header->magic != SPW_WEIGHTS_MAGIC) return "packed weights do not begin with SPWK";
  if (header->version != SPW_WEIGHTS_VERSION) return "packed weights have another version";
  if (header->total_bytes != weights_bytes) return "packed weights have another size than their header says";
  if (header->format > SPW_FORMAT_F32) return "packed weights have an unknown format";
  if (header->pattern != SPW_PATTERN_DENSE) return "packed weights have an unknown block pattern";
  if (header->checksum != checksum(header)) return "packed weights have a wrong checksum";
  if ((header->format == SPW_FORMAT_F32) != (operator->type == SPW_CONV2D_F32))
    return "packed weights are of another type than the operator";
  if (header->out_channels != (uint32_t)operator->out_channels ||
      header->in_channels != (uint32_t)operator->in_channels ||
      header->kernel_height != operator->kernel_height || header->kernel_width != operator->kernel_width ||
      header->groups != (uint32_t)operator->groups || header->groups == 0)
    return "packed weights have another shape than the operator";
  const int depthwise = header->groups > 1 && header->groups == header->in_channels;
  if (depthwise ? header->out_channels != header->groups
                : header->groups > 1 && (header->in_channels % (4 * header->groups) ||
                                         header->out_channels % (4 * header->groups)))
    return "channels of a group are no multiple of 4";
  if (header->panel_channels != (depthwise ? SPW_CHANNEL_PACK : SPW_PANEL_CHANNELS))
    return "packed weights have another panel width";
  const int indexed = header->format == SPW_FORMAT_CB4T || header->format == SPW_FORMAT_CB2T;
  if (indexed != (header->codebook_entries > 0) || header->codebook_entries > SPW_CODEBOOK_ENTRIES)
    return "packed weights have a codebook that does not fit their format";
  const size_t channel_bytes = ((size_t)header->out_channels + 3) / 4 * 16;
  if (header->values_bytes != values_bytes(header, depthwise) ||
      outside(header, header->codebook_offset, SPW_CODEBOOK_ENTRIES) ||
      outside(header, header->values_offset, header->values_bytes) ||
      outside(header, header->initial_offset, channel_bytes) || outside(header, header->scale_offset, channel_bytes) ||
      outside(header, header->bias_offset, channel_bytes))
    return "packed weights have a section outside their bytes";
  return NULL;
}
