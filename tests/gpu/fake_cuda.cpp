// A CUDA device that computes nothing: a CPU build of torch takes it for real as far as tensors without memory go.
// It has a guard, which autograd and autocast ask for, the hooks that tell of devices, and generators of random numbers.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

const c10::Device ONLY(c10::DeviceType::CUDA, 0);

struct FakeGuard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return ONLY; }
  c10::Device getDevice() const override { return ONLY; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  bool queryStream(const c10::Stream&) const override { return true; }

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, ONLY); }
};

// draws like the CPU's, but says that it is the device's
struct FakeGenerator final : at::CPUGeneratorImpl {
  FakeGenerator() {
    device_ = ONLY;
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::CUDA);
  }
};

c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::CUDA, new FakeGuard());

}  // namespace

// torch finds the hooks by this name
namespace at {

struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<FakeGenerator>(); }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
