// A few C functions around ExecuTorch's C++ runtime, for Python's ctypes: the wheel's own binding needs all of PyTorch.
//
// One method, "forward", with one float32 input and float32 as its first output. Everything runs on the calling thread.

#include <cstring>
#include <memory>
#include <vector>

#include <executorch/extension/data_loader/file_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

using namespace executorch::runtime;
using executorch::extension::FileDataLoader;
using executorch::extension::MallocMemoryAllocator;
using executorch::extension::threadpool::NoThreadPoolGuard;

namespace {

// Members are destroyed from the last to the first: the method refers to all that stands before it.
struct Network {
  std::unique_ptr<FileDataLoader> loader;
  std::unique_ptr<Program> program;
  std::vector<std::vector<uint8_t>> planned;
  std::vector<Span<uint8_t>> spans;
  std::unique_ptr<HierarchicalAllocator> planned_memory;
  MallocMemoryAllocator method_memory, temporary_memory;
  std::unique_ptr<MemoryManager> memory;
  std::unique_ptr<Method> method;
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// Opens a network. Returns null and stores ExecuTorch's error code if it cannot.
API Network *executorch_open(const char *path, int *error) {
  runtime_init();
  NoThreadPoolGuard single_thread;
  auto network = std::make_unique<Network>();
  auto failed = [error](Error code) {
    *error = static_cast<int>(code);
    return nullptr;
  };

  auto loader = FileDataLoader::from(path);
  if (!loader.ok()) return failed(loader.error());
  network->loader = std::make_unique<FileDataLoader>(std::move(*loader));
  auto program = Program::load(network->loader.get());
  if (!program.ok()) return failed(program.error());
  network->program = std::make_unique<Program>(std::move(*program));
  auto meta = network->program->method_meta("forward");
  if (!meta.ok()) return failed(meta.error());

  network->planned.resize(meta->num_memory_planned_buffers());
  for (size_t i = 0; i < network->planned.size(); i++) {
    network->planned[i].resize(static_cast<size_t>(*meta->memory_planned_buffer_size(i)));
    network->spans.push_back({network->planned[i].data(), network->planned[i].size()});
  }
  network->planned_memory =
      std::make_unique<HierarchicalAllocator>(Span<Span<uint8_t>>(network->spans.data(), network->spans.size()));
  network->memory = std::make_unique<MemoryManager>(&network->method_memory, network->planned_memory.get(),
                                                    &network->temporary_memory);
  auto method = network->program->load_method("forward", network->memory.get());
  if (!method.ok()) return failed(method.error());
  network->method = std::make_unique<Method>(std::move(*method));
  return network.release();
}

// Computes the first output, of at most `capacity` numbers. Returns how many there are, or minus an error code.
API long executorch_infer(Network *network, const float *input, float *output, long capacity) {
  NoThreadPoolGuard single_thread;
  auto meta = network->method->method_meta().input_tensor_meta(0);
  if (!meta.ok()) return -static_cast<long>(meta.error());
  std::vector<executorch::aten::SizesType> sizes(meta->sizes().begin(), meta->sizes().end());
  std::vector<executorch::aten::DimOrderType> order(meta->dim_order().begin(), meta->dim_order().end());
  executorch::aten::TensorImpl tensor(executorch::aten::ScalarType::Float, static_cast<ssize_t>(sizes.size()),
                                      sizes.data(), const_cast<float *>(input), order.data());
  Error error = network->method->set_input(EValue(executorch::aten::Tensor(&tensor)), 0);
  if (error == Error::Ok) error = network->method->execute();
  if (error != Error::Ok) return -static_cast<long>(error);
  const auto &result = network->method->get_output(0).toTensor();
  if (result.numel() > capacity) return -static_cast<long>(Error::InvalidArgument);
  std::memcpy(output, result.const_data_ptr<float>(), static_cast<size_t>(result.numel()) * sizeof(float));
  return static_cast<long>(result.numel());
}
