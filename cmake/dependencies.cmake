# Every library comes from Debian packages (scripts/install-deps), headers of the CUDA backend from
# scripts/fetch-cuda-headers; nothing is fetched here.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(Boost 1.81 REQUIRED)
find_package(OpenSSL 3 REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(simdjson 3 REQUIRED)
find_package(CLI11 2 REQUIRED)
find_package(fmt 9 REQUIRED)
find_package(spdlog 1.10 REQUIRED)
find_package(hwy 1.0 REQUIRED)
# The pthread build: Debian's serial build does not lock its allocator, so threads that call it at once corrupt each
# other's products. Linked statically, so that quantize/linear_algebra.cpp can set its environment before it starts.
find_library(OPENBLAS_LIBRARY libopenblas.a PATH_SUFFIXES openblas-pthread REQUIRED NO_CACHE)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
# What torch.save writes is a zip archive. Linked statically: a library less that a machine must have to run nibble.
find_package(ZLIB REQUIRED)
find_library(MINIZIP_LIBRARY libminizip.a REQUIRED NO_CACHE)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(PROMETHEUS REQUIRED IMPORTED_TARGET prometheus-cpp-core)  # its CMake config wants civetweb
if(NIBBLE_TESTS)
  find_package(GTest 1.12 REQUIRED)
endif()
if(NIBBLE_BENCH)
  find_package(benchmark 1.7 REQUIRED)
endif()
if(NIBBLE_CUDA)
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # nvcc has it, CMake 3.25 does not know
  endif()
  find_package(CUDAToolkit 13 REQUIRED)
  find_path(NIBBLE_CUDA_HEADERS flashinfer/data/include/flashinfer/attention/prefill.cuh NO_CACHE NO_DEFAULT_PATH
            PATHS "$ENV{NIBBLE_CUDA_HEADERS}" "$ENV{XDG_CACHE_HOME}/nibble/cuda-headers"
                  "$ENV{HOME}/.cache/nibble/cuda-headers")
  if(NOT NIBBLE_CUDA_HEADERS)
    message(FATAL_ERROR "FlashInfer's headers are missing: run scripts/fetch-cuda-headers")
  endif()
endif()
