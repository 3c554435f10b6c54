# That nothing breaks it, by name:
#   ctest -L fault        calls that fail, small devices, work that is lost
#   ctest -L guard        memory that ends at memory nobody may touch
#   ctest -L validation   the validation layer: core, synchronisation, instrumented shaders, best practices
#   ctest -L fuzz         see fuzz/        ctest -L soak   serving for long        ctest -L race   in a build of preset tsan

# A wrong layer path is silent: two known mistakes must be reported, or the validation legs prove nothing.
add_executable(validation_canary canary/validation_canary.c)
target_include_directories(validation_canary SYSTEM PRIVATE ${VKMQA_VULKAN_INCLUDE_DIR})
target_link_libraries(validation_canary PRIVATE vkmqa_flags ${CMAKE_DL_LIBS})
foreach(leg ${mainLegs})
    set(name validation_canary.${leg})
    add_test(NAME ${name} COMMAND ${toolbox} run --validate ${driver_${leg}} -- $<TARGET_FILE:validation_canary>)
    set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 60
        ENVIRONMENT "${commonEnvironment}" LABELS "driver;${leg};validation")
endforeach()

# Instrumented shaders. Kernels that use addresses only: of pushed descriptors the layer (1.4.363) looks up stale ranges,
# and to its check for races the barrier of a subgroup, which the matrix kernels use, is none.
function(vkmqa_instrumented name)
    vkmqa_add_leg(${name} lavapipe26 VALIDATE KIND gpu COMMAND $<TARGET_FILE:test_${name}> TIMEOUT 300
        ENVIRONMENT VKMQA_TEST_TIERS=subgroup,cpu VKMQA_TEST_ALWAYS= ${ARGN})
endfunction()
vkmqa_instrumented(attention "VKMQA_TEST_FILTER=heads*")
vkmqa_instrumented(append VKMQA_TEST_PART=2/8 "VKMQA_TEST_FILTER=bytes*")
vkmqa_instrumented(merge VKMQA_TEST_PART=1/4 "VKMQA_TEST_FILTER=states*")
vkmqa_instrumented(rotate VKMQA_TEST_PART=1/4 "VKMQA_TEST_FILTER=rotated*")
vkmqa_instrumented(hostile_cache)
foreach(name attention cache_api import)
    vkmqa_add_leg(${name} lavapipe26 VALIDATE KIND best COMMAND $<TARGET_FILE:test_${name}> TIMEOUT 300
        ENVIRONMENT VKMQA_TEST_TIERS=cpu "VKMQA_TEST_FILTER=$<IF:$<STREQUAL:${name},attention>,heads,>*")
endforeach()
# Each kind must notice a mistake: a row read, a row written behind a buffer; work of many submissions.
foreach(mistake 1 2)
    add_test(NAME validation_canary.gpu-${mistake}
        COMMAND ${toolbox} run --validate=gpu lavapipe26 -- $<TARGET_FILE:test_guard> ${mistake})
    set_tests_properties(validation_canary.gpu-${mistake} PROPERTIES TIMEOUT 60 SKIP_REGULAR_EXPRESSION "skipped: "
        PASS_REGULAR_EXPRESSION "Out of bounds" ENVIRONMENT "${commonEnvironment}" LABELS "driver;lavapipe26;validation")
endforeach()
add_test(NAME validation_canary.best
    COMMAND ${toolbox} run --validate=best lavapipe26 -- $<TARGET_FILE:validation_canary>)
set_tests_properties(validation_canary.best PROPERTIES TIMEOUT 60 SKIP_REGULAR_EXPRESSION "skipped: "
    PASS_REGULAR_EXPRESSION "BestPractices-" ENVIRONMENT "${commonEnvironment}" LABELS "driver;lavapipe26;validation")

# The layer of Debian 12, on its own lavapipe.
foreach(name attention append cache_api)
    if(NOT "lavapipe22-sg8" IN_LIST validateLegs)
        vkmqa_validated(${name} LEGS lavapipe22-sg8 ENVIRONMENT VKMQA_TEST_TIERS=cpu VKMQA_TEST_PART=4/8)
    endif()
endforeach()

# The same programs where a buffer ends at its memory's end, or begins at its start, and an access beyond it is fatal
# (layer/guard.c): a small part of the shapes. On lavapipe only kernels that use addresses can go astray.
#   vkmqa_guarded(NAME LEG WAY [ENVIRONMENT A=B...])
function(vkmqa_guarded name leg way)
    cmake_parse_arguments(arg "" "" "ENVIRONMENT" ${ARGN})
    string(REPLACE ":" "-" suffix ${way}-${leg}) # NAME.guard-LEG, NAME.guard-front-LEG
    set(driver_${suffix} ${driver_${leg}})
    set(environment_${suffix} ${environment_${leg}})
    vkmqa_add_leg(${name} ${suffix} COMMAND $<TARGET_FILE:test_${name}> TIMEOUT 600 LABELS guard
        ENVIRONMENT VKMQA_TEST_TIERS=portable,cpu ${layerEnvironment} VKMQA_LAYER=${way} VKMQA_TEST_GUARD=none
                    ${arg_ENVIRONMENT})
endfunction()
vkmqa_guarded(attention swiftshader guard ENVIRONMENT VKMQA_TEST_SHARE=7/24 "VKMQA_TEST_FILTER=heads*")
vkmqa_guarded(append swiftshader guard ENVIRONMENT VKMQA_TEST_PART=3/8 "VKMQA_TEST_FILTER=bytes*")
vkmqa_guarded(compact swiftshader guard ENVIRONMENT VKMQA_TEST_PART=0/4 "VKMQA_TEST_FILTER=*Drafts*")
vkmqa_guarded(merge swiftshader guard ENVIRONMENT VKMQA_TEST_PART=1/4 "VKMQA_TEST_FILTER=states*")
vkmqa_guarded(rotate swiftshader guard ENVIRONMENT VKMQA_TEST_PART=1/4 "VKMQA_TEST_FILTER=rotated*")
vkmqa_guarded(hostile swiftshader guard)
vkmqa_guarded(hostile_cache swiftshader guard)
vkmqa_guarded(replay swiftshader guard ENVIRONMENT "VKMQA_TEST_FILTER=decoding*")
vkmqa_guarded(invariance swiftshader guard ENVIRONMENT "VKMQA_TEST_FILTER=default*")
vkmqa_guarded(append swiftshader guard:front ENVIRONMENT VKMQA_TEST_PART=5/8 "VKMQA_TEST_FILTER=bytes*")
vkmqa_guarded(hostile lavapipe26 guard:front ENVIRONMENT VKMQA_TEST_TIERS=cpu,coopmat)
vkmqa_guarded(hostile lavapipe26 guard ENVIRONMENT VKMQA_TEST_TIERS=subgroup,cpu)

# Calls that fail, see failures/failures.h.
vkmqa_driver_test(failures SOURCES failures/test_failures.c failures/attempt.c failures/scenario_own.c failures/scenario_engine.c
    failures/scenario_cache.c failures/system.c LEGS lavapipe26 LABELS fault
    ENVIRONMENT ${layerEnvironment} VKMQA_LAYER=fail)
# On a card two queues wait for each other: all that is another there.
set(driver_card-lavapipe26 lavapipe26)
set(environment_card-lavapipe26 ${environment_lavapipe26})
vkmqa_add_leg(failures card-lavapipe26 COMMAND $<TARGET_FILE:test_failures> TIMEOUT 600 LABELS lavapipe26 fault ENVIRONMENT
    ${layerEnvironment}:VK_LAYER_VKMQA_below VKMQA_LAYER=fail VKMQA_LAYER_BELOW=clamp:card VKMQA_TEST_FILTER=ofACache
    VKMQA_TEST_ENTRIES=:vkCreateSemaphore:vkQueueSubmit:vkQueueWaitIdle:vkWaitForFences:vkAllocateMemory:)
add_dependencies(test_failures vkmqa_below_layer)
target_compile_definitions(test_failures PRIVATE VKMQA_TEST_LAYER="$<TARGET_FILE:vkmqa_test_layer>")
foreach(function calloc free open close read write lseek fstat fchmod fsync rename dlopen pthread_create)
    target_link_options(test_failures PRIVATE -Wl,--wrap=${function})
endforeach()
# vkmqa_failing(NAME EVERY LONG LAUNCHER COMMAND...): whole programs with a failing call at every EVERY-th place; with --long at
# every LONG-th.
function(vkmqa_failing name every long launcher)
    foreach(row "${name} ${every}" "${name}-long ${long}")
        separate_arguments(row)
        list(GET row 0 test)
        list(GET row 1 step)
        add_test(NAME failures.${test} COMMAND ${launcher} ${CMAKE_CURRENT_SOURCE_DIR}/failures/samples ${toolbox} ${step} ${ARGN})
        set_tests_properties(failures.${test} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 900 LABELS "driver;lavapipe26;fault"
            ENVIRONMENT "${commonEnvironment};${environment_lavapipe26};${layerEnvironment}")
    endforeach()
    set_tests_properties(failures.${name}-long PROPERTIES LABELS long TIMEOUT 5400)
endfunction()
if(NOT VKMQA_SANITIZE)
    if(TARGET sample_embed)
        vkmqa_failing(samples 7 1 "" $<TARGET_FILE:sample_hello> $<TARGET_FILE:sample_embed>)
        vkmqa_failing(chat_cache 17 1 "" $<TARGET_FILE:sample_chat_cache>)
    endif()
    if(TARGET sample_generate)
        vkmqa_failing(generate 5 1 "" "$<TARGET_FILE:sample_generate> --tokens 3 --prompt ab --model \
${PROJECT_SOURCE_DIR}/samples/generate/model.safetensors")
    endif()
    if(TARGET vkmqa-bench)
        vkmqa_failing(bench 19 1 "" "$<TARGET_FILE:vkmqa-bench> --op decode,append -hq 2 -hkv 1 -hd 64 -d 64 -r 1 --quick")
    endif()
    if(TARGET sample_desktop)
        vkmqa_failing(desktop 11 1 "${display}" "$<TARGET_FILE:sample_desktop> --frames 3 --context 1024")
    endif()
    if(TARGET sample_godot) # nothing of the user's is read or written
        set(home ${CMAKE_CURRENT_BINARY_DIR}/godot-failing)
        vkmqa_failing(godot 7 1 "env;XDG_DATA_HOME=${home};XDG_CONFIG_HOME=${home};XDG_CACHE_HOME=${home}" "godot --path \
${PROJECT_BINARY_DIR}/samples/godot --headless --audio-driver Dummy -s ${CMAKE_CURRENT_SOURCE_DIR}/godot/own.gd")
    endif()
endif()

# Small devices, see layer/clamp.c: the profile's own tests, and programs from which it takes something away.
set(clampPrograms_small attention append merge replay compact verify api)
set(clampPrograms_few "")
set(clampPrograms_unbound merge)
set(clampPrograms_alignment attention append verify)
set(clampPrograms_timestampless slices import)
set(clampPrograms_heap cache_api)
set(clampPrograms_card api api_runtime import cache cache_api snapshot slices)
vkmqa_program(clamp clamp/test_clamp.c clamp/clamp_layer.c)
add_dependencies(test_clamp vkmqa_test_layer)
foreach(profile small few unbound alignment timestampless heap card)
    set(leg clamp-${profile})
    set(driver_${leg} lavapipe26)
    set(environment_${leg} ${environment_lavapipe26} ${layerEnvironment} VKMQA_LAYER=clamp:${profile}
        VKMQA_TEST_SHARE=4/26 VKMQA_TEST_ALWAYS= VKMQA_TEST_TIERS=portable)
    if(profile STREQUAL "unbound")
        list(APPEND environment_${leg} VKMQA_TEST_TIERS=subgroup)
    endif()
    foreach(name clamp ${clampPrograms_${profile}})
        vkmqa_add_leg(${name} ${leg} COMMAND $<TARGET_FILE:test_${name}> TIMEOUT 600 LABELS lavapipe26 fault)
    endforeach()
endforeach()
# Its other tests start themselves again, outside of the toolbox.
set_property(TEST snapshot.clamp-card APPEND PROPERTY ENVIRONMENT "VKMQA_TEST_FILTER=loaded*")
# The validation layer stands above ours, and judges by what ours shows.
foreach(leg clamp-small clamp-alignment)
    foreach(name attention api)
        vkmqa_add_leg(${name} ${leg} VALIDATE COMMAND $<TARGET_FILE:test_${name}> TIMEOUT 600 LABELS lavapipe26 fault)
    endforeach()
endforeach()

# Races, found by ThreadSanitizer where the build is one of it (preset tsan): ctest -L race. The system's lavapipe: under
# the toolbox's loader the sanitizer's runtime would meet another C library.
if(VKMQA_SANITIZE MATCHES "thread")
    set(tsanOptions suppressions=${CMAKE_CURRENT_SOURCE_DIR}/sanitize/tsan.supp:exitcode=66)
    vkmqa_add_leg(race lavapipe22-sg8 COMMAND $<TARGET_FILE:test_threads> TIMEOUT 1200 LABELS race
        ENVIRONMENT VKMQA_TEST_THREADS=16 VKMQA_TEST_TIERS=portable,cpu TSAN_OPTIONS=${tsanOptions})
endif()

# Serving for a long time, and the shared library loaded and unloaded, see soak/.
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    vkmqa_driver_test(soak SOURCES soak/test_soak.c soak/flat.c cache_world.c cache_operations.c failures/attempt.c
        failures/scenario_own.c failures/scenario_cache.c LEGS lavapipe26 LABELS soak TIMEOUT 4500
        ENVIRONMENT ${layerEnvironment} VKMQA_LAYER=fail)
    target_compile_definitions(test_soak PRIVATE VKMQA_TEST_LAYER="$<TARGET_FILE:vkmqa_test_layer>")
    if(NOT VKMQA_SANITIZE) # whose runtimes keep what they have seen
        add_executable(reload soak/reload.c soak/flat.c)
        set_target_properties(reload PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF)
        target_include_directories(reload PRIVATE ${PROJECT_SOURCE_DIR}/include)
        target_include_directories(reload SYSTEM PRIVATE ${VKMQA_VULKAN_INCLUDE_DIR})
        target_compile_definitions(reload PRIVATE VK_NO_PROTOTYPES)
        target_link_libraries(reload PRIVATE vkmqa_flags ${CMAKE_DL_LIBS})
        vkmqa_add_leg(soak.reload lavapipe26 COMMAND $<TARGET_FILE:reload> $<TARGET_FILE:vkmqa_shared> TIMEOUT 900
            LABELS soak)
    endif()
endif()

# What reads the work of others, under libFuzzer with clang; see fuzz/run. A bounded number of inputs from a fixed seed,
# and of --long as many as find something.
if(UNIX AND NOT VKMQA_SANITIZE)
    set(fuzz ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/run)
    set(fuzzEnvironment VKMQA_BUILD=${PROJECT_BINARY_DIR} VKMQA_VULKAN_INCLUDE_DIR=${VKMQA_VULKAN_INCLUDE_DIR}
        VKMQA_XXHASH_INCLUDE_DIR=${VKMQA_XXHASH_INCLUDE_DIR})
    add_test(NAME fuzz.build COMMAND ${fuzz} build)
    set_tests_properties(fuzz.build PROPERTIES FIXTURES_SETUP fuzz LABELS "host;fuzz" TIMEOUT 900 SKIP_RETURN_CODE 77
        ENVIRONMENT "${fuzzEnvironment}")
    foreach(row "case 15000 10000000" "tuning 80000 10000000" "options 80000 10000000" "open 15000 10000000"
                "snapshot 5000 1000000" "cache 8000 1000000" "api 15000 2000000")
        separate_arguments(row)
        list(GET row 0 target)
        list(GET row 1 short)
        list(GET row 2 full)
        add_test(NAME fuzz.${target} COMMAND ${fuzz} ${target} ${short})
        add_test(NAME fuzz-long.${target} COMMAND ${fuzz} ${target} ${full})
        set_tests_properties(fuzz.${target} PROPERTIES LABELS "host;fuzz" TIMEOUT 300)
        set_tests_properties(fuzz-long.${target} PROPERTIES LABELS long TIMEOUT 7200)
        set_tests_properties(fuzz.${target} fuzz-long.${target} PROPERTIES FIXTURES_REQUIRED fuzz SKIP_RETURN_CODE 77
            RESOURCE_LOCK fuzz.${target} ENVIRONMENT "${fuzzEnvironment};VKMQA_FUZZ_BUILT=1")
    endforeach()
endif()
