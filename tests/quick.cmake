# A small part of everything, for a look between two edits and for tests/mutants/run: every kernel that lavapipe runs and
# every module of runtime/, in half a minute on two cores once the driver's cache is warm. Named NAME.quick and labelled
# nothing but quick: the usual run leaves it out, as it has these shapes elsewhere.
#   ctest -L quick -j2
set(VKMQA_QUICK_TIMEOUT 60 CACHE STRING "Seconds that a test of label quick may take")
mark_as_advanced(VKMQA_QUICK_TIMEOUT)
set(driver_quick lavapipe26)
set(environment_quick ${environment_lavapipe26})

# vkmqa_quick(NAME PROGRAM [A=B...]): the test program once more, in this environment.
function(vkmqa_quick name program)
    vkmqa_add_leg(${name} quick COMMAND $<TARGET_FILE:test_${program}> TIMEOUT ${VKMQA_QUICK_TIMEOUT}
        ENVIRONMENT VKMQA_TEST_TIERS=portable,cpu VKMQA_TEST_ALWAYS= ${ARGN})
    set_tests_properties(${name}.quick PROPERTIES LABELS quick)
    set_property(GLOBAL APPEND PROPERTY vkmqa_quick_targets test_${program})
endfunction()

foreach(name ${hostTests})
    add_test(NAME ${name}.quick COMMAND test_${name})
    set_tests_properties(${name}.quick PROPERTIES TIMEOUT ${VKMQA_QUICK_TIMEOUT} LABELS quick)
    set_property(GLOBAL APPEND PROPERTY vkmqa_quick_targets test_${name})
endforeach()
vkmqa_quick(kernels attention "VKMQA_TEST_FILTER=everyKernelIs*")
vkmqa_quick(attention attention VKMQA_TEST_TIERS=portable,subgroup,cpu,coopmat VKMQA_TEST_SHARE=15/20
    "VKMQA_TEST_FILTER=heads*")
vkmqa_quick(append append VKMQA_TEST_PART=3/12 "VKMQA_TEST_FILTER=bytes*")
vkmqa_quick(compact compact VKMQA_TEST_TIERS=portable VKMQA_TEST_PART=0/6)
vkmqa_quick(merge merge VKMQA_TEST_PART=1/4 "VKMQA_TEST_FILTER=states*")
vkmqa_quick(rotate rotate VKMQA_TEST_PART=1/4 "VKMQA_TEST_FILTER=rotated*")
vkmqa_quick(hostile hostile VKMQA_TEST_TIERS=cpu)
vkmqa_quick(hostile_cache hostile_cache VKMQA_TEST_TIERS=portable)
vkmqa_quick(replay replay VKMQA_TEST_TIERS=portable "VKMQA_TEST_FILTER=decoding*")
vkmqa_quick(slices slices VKMQA_TEST_TIERS=cpu)
vkmqa_quick(cache cache VKMQA_TEST_OPERATIONS=10)
vkmqa_quick(cache_api cache_api)
vkmqa_quick(cache_prefix cache_prefix)
vkmqa_quick(snapshot snapshot "VKMQA_TEST_FILTER=forgery*")
vkmqa_quick(tuning tuning)
vkmqa_quick(verify verify)
vkmqa_quick(import import VKMQA_TEST_TIERS=cpu)
vkmqa_quick(api api)
vkmqa_quick(api_features api_features)
vkmqa_quick(api_runtime api_runtime)

# What has to be built for them.
get_property(quickTargets GLOBAL PROPERTY vkmqa_quick_targets)
list(REMOVE_DUPLICATES quickTargets)
add_custom_target(quick DEPENDS ${quickTargets})
