#include "backend/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <source_location>
#include <string>
#include <utility>

#include "backend/cuda/device.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

// What NVIDIA recommends for Hopper.
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
// A server meets every number of tokens; plans beyond these are found again.
constexpr std::size_t kMaxPlans = 4096;
constexpr const char* kLibrary = "libcublasLt.so.13";

template <class Function>
Function find_function(void* library, const char* name) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) throw Error(ErrorCode::Unavailable, std::string(kLibrary) + " lacks " + name);
  return reinterpret_cast<Function>(symbol);
}

cudaDataType_t cuda_type(DType dtype) {
  switch (dtype) {
    case DType::F32: return CUDA_R_32F;
    case DType::F16: return CUDA_R_16F;
    case DType::BF16: return CUDA_R_16BF;
    case DType::F8E4M3: return CUDA_R_8F_E4M3;
    default: break;
  }
  throw Error(ErrorCode::Unsupported, "cuda: no matrix product of this dtype");
}

struct ScaleModes {
  std::int32_t w;
  std::int32_t x;
};

ScaleModes scale_modes(Fp8Scaling scaling) {
  switch (scaling) {
    case Fp8Scaling::Vector:
      return {CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F};
    case Fp8Scaling::Block:
      return {CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F};
    default: break;
  }
  return {CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F};
}

}  // namespace

/// The library's functions by their own types.
struct CublasLt::Functions {
  static const Functions& get() {
    static const Functions functions(open());
    return functions;
  }

  void check(cublasStatus_t status, std::source_location at = std::source_location::current()) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw Error(ErrorCode::Internal, std::string("cuBLASLt: ") + status_string(status) + " (" + at.file_name() + ":" +
                                         std::to_string(at.line()) + ")");
  }

  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) create_desc;
  decltype(&cublasLtMatmulDescDestroy) destroy_desc;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose;

 private:
  static void* open() {
    void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return library;
    throw Error(ErrorCode::Unavailable, std::string(dlerror()) +
                                            ": install CUDA 13's cuBLAS (the toolkit's, or PyPI's nvidia-cublas) and "
                                            "name its folder in LD_LIBRARY_PATH");
  }

  explicit Functions(void* library)
      : status_string(find_function<decltype(status_string)>(library, "cublasLtGetStatusString")),
        create(find_function<decltype(create)>(library, "cublasLtCreate")),
        destroy(find_function<decltype(destroy)>(library, "cublasLtDestroy")),
        matmul(find_function<decltype(matmul)>(library, "cublasLtMatmul")),
        create_desc(find_function<decltype(create_desc)>(library, "cublasLtMatmulDescCreate")),
        destroy_desc(find_function<decltype(destroy_desc)>(library, "cublasLtMatmulDescDestroy")),
        set_desc(find_function<decltype(set_desc)>(library, "cublasLtMatmulDescSetAttribute")),
        create_layout(find_function<decltype(create_layout)>(library, "cublasLtMatrixLayoutCreate")),
        destroy_layout(find_function<decltype(destroy_layout)>(library, "cublasLtMatrixLayoutDestroy")),
        create_preference(find_function<decltype(create_preference)>(library, "cublasLtMatmulPreferenceCreate")),
        destroy_preference(find_function<decltype(destroy_preference)>(library, "cublasLtMatmulPreferenceDestroy")),
        set_preference(find_function<decltype(set_preference)>(library, "cublasLtMatmulPreferenceSetAttribute")),
        choose(find_function<decltype(choose)>(library, "cublasLtMatmulAlgoGetHeuristic")) {}
};

/// A product in the library's column-major terms: y^T [n, m] = (w^T [k, n])^T x^T [k, m].
struct CublasLt::Plan {
  Plan(const Functions& from, cublasLtHandle_t handle, const MatmulShape& shape, const Fp8Scales& scales)
      : functions(from) {
    try {
      describe(shape);
      if (shape.scaling != Fp8Scaling::None) set_scales(scales);  // without them no algorithm is found
      choose(handle);
    } catch (...) {
      destroy();
      throw;
    }
  }
  ~Plan() { destroy(); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  const Functions& functions;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t y = nullptr;
  cublasLtMatmulAlgo_t algorithm{};

  void set_scales(const Fp8Scales& scales) {
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.w);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.x);
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    functions.check(functions.set_desc(desc, attribute, &value, sizeof value));
  }

  void describe(const MatmulShape& shape) {
    const auto m = static_cast<std::uint64_t>(shape.m);
    const auto n = static_cast<std::uint64_t>(shape.n);
    const auto k = static_cast<std::uint64_t>(shape.k);
    const cudaDataType_t input = cuda_type(shape.input);
    functions.check(functions.create_desc(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (shape.scaling != Fp8Scaling::None) {
      set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, scale_modes(shape.scaling).w);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, scale_modes(shape.scaling).x);
    }
    functions.check(functions.create_layout(&w, input, k, n, shape.k));
    functions.check(functions.create_layout(&x, input, k, m, shape.k));
    functions.check(functions.create_layout(&y, cuda_type(shape.output), n, m, shape.y_stride));
  }

  void choose(cublasLtHandle_t handle) {
    cublasLtMatmulPreference_t preference = nullptr;
    functions.check(functions.create_preference(&preference));
    const std::size_t workspace = kWorkspaceBytes;
    int num_found = 0;
    cublasLtMatmulHeuristicResult_t found{};
    cublasStatus_t status =
        functions.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = functions.choose(handle, desc, w, x, y, y, preference, 1, &found, &num_found);
    }
    functions.destroy_preference(preference);
    functions.check(status);
    functions.check(num_found == 1 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED);
    algorithm = found.algo;
  }

  void destroy() noexcept {
    for (const cublasLtMatrixLayout_t layout : {w, x, y}) {
      if (layout != nullptr) functions.destroy_layout(layout);
    }
    if (desc != nullptr) functions.destroy_desc(desc);
  }
};

CublasLt::CublasLt() : functions_(Functions::get()), workspace_(device_buffer(kWorkspaceBytes)) {
  functions_.check(functions_.create(&handle_));
}

CublasLt::~CublasLt() {
  plans_.clear();
  functions_.destroy(handle_);
}

CublasLt::Plan& CublasLt::plan_of(const MatmulShape& shape, const Fp8Scales& scales) {
  if (plans_.size() >= kMaxPlans && !plans_.contains(shape)) plans_.clear();
  return plans_.try_emplace(shape, functions_, handle_, shape, scales).first->second;
}

void CublasLt::multiply(const MatmulShape& shape, const void* x, const void* w, void* y, cudaStream_t stream,
                        const Fp8Scales& scales) {
  Plan& plan = plan_of(shape, scales);
  if (shape.scaling != Fp8Scaling::None) plan.set_scales(scales);
  const float one = 1;
  const float zero = 0;
  functions_.check(functions_.matmul(handle_, plan.desc, &one, w, plan.w, x, plan.x, &zero, y, plan.y, y, plan.y,
                                     &plan.algorithm, workspace_.data(), kWorkspaceBytes, stream));
}

}  // namespace nibble::backend::cuda
