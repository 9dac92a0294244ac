set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(NIBBLE_CCACHE ccache)
if(NIBBLE_CCACHE)
  # Checkouts in different folders share the cache.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
                                  ${NIBBLE_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
find_program(NIBBLE_MOLD mold)

add_library(nibble_options INTERFACE)
target_compile_options(nibble_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wno-missing-field-initializers>)
# clang sees libstdc++ 12's own std::stable_sort call a function that C++20 deprecates.
target_compile_options(nibble_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wno-deprecated-declarations>)
# g++ 12 takes `"literal" + string` for an overlapping copy (GCC bug 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(nibble_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
if(NIBBLE_WERROR)
  target_compile_options(nibble_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(NIBBLE_MOLD)
  # mold 1.10 can loop for ever over the GNU hash table of some programs' symbols.
  target_link_options(nibble_options INTERFACE -fuse-ld=mold -Wl,--hash-style=sysv)
endif()
if(NIBBLE_SANITIZE)
  target_compile_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE} -fno-omit-frame-pointer
                                                  -fno-sanitize-recover=all -g1)
  target_link_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()
if(NIBBLE_FUZZ)
  # Coverage of every layer, without libFuzzer's main.
  target_compile_options(nibble_options INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(nibble_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# nibble_layer(NAME SOURCES … DEPS …): the static library nibble_NAME of the folder src/NAME.
function(nibble_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(nibble_${name} STATIC ${ARG_SOURCES})
  target_include_directories(nibble_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(nibble_${name} PUBLIC ${ARG_DEPS} PRIVATE nibble_options ${ARG_PRIVATE_DEPS})
endfunction()

# nibble_test(NAME SOURCES … DEPS …): a GoogleTest program whose cases CTest knows one by one, label "fast".
function(nibble_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(nibble_${name}_test ${ARG_SOURCES})
  target_include_directories(nibble_${name}_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(nibble_${name}_test PRIVATE nibble_options ${ARG_DEPS} GTest::gtest_main GTest::gmock)
  gtest_discover_tests(nibble_${name}_test DISCOVERY_TIMEOUT 60 PROPERTIES LABELS fast)
endfunction()

if(NIBBLE_TESTS)
  include(GoogleTest)
endif()
