# Runs the Godot sample and its checks in the real engine, on a virtual display and without one.
# -DDISPLAY= -DTOOLBOX= -DLEG= -DPROJECT= (built) -DSCRIPTS= -DWORK=
file(REMOVE_RECURSE ${WORK})
file(COPY ${PROJECT}/ DESTINATION ${WORK}/project)
file(GLOB scripts ${SCRIPTS}/*.gd)
file(COPY ${scripts} DESTINATION ${WORK}/project)
foreach(kind DATA CONFIG CACHE) # nothing of the user's is read or written
    set(ENV{XDG_${kind}_HOME} ${WORK}/home)
endforeach()

# godot(NAME CODE [DISPLAY] [VALIDATE] ARGUMENTS argument... PRINTS regex...): it has to end with that code, and to
# print these lines. "ERROR:" is what the engine and vkmqa print when something was left behind.
function(godot name code)
    cmake_parse_arguments(arg "DISPLAY;VALIDATE;NOISY" "" "ARGUMENTS;PRINTS" ${ARGN})
    set(command ${TOOLBOX} run)
    if(arg_VALIDATE)
        list(APPEND command --validate)
    endif()
    list(APPEND command ${LEG} -- godot --path ${WORK}/project --audio-driver Dummy --quit-after 5000)
    if(arg_DISPLAY)
        list(PREPEND command ${DISPLAY})
        list(APPEND command --display-driver x11 --rendering-driver vulkan)
    else()
        list(APPEND command --headless)
    endif()
    execute_process(COMMAND ${command} ${arg_ARGUMENTS} OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE got
        TIMEOUT 120)
    if(got EQUAL 77)
        string(REGEX MATCH "skipped: [^\n]*" why "${output}")
        message("skipped: ${why}") # SKIP_REGULAR_EXPRESSION
        set(skipped TRUE PARENT_SCOPE)
        return()
    endif()
    message("---- ${name}\n${output}")
    if(NOT got STREQUAL code)
        message(FATAL_ERROR "${name}: ended with ${got}, not ${code}")
    endif()
    if(NOT arg_NOISY AND output MATCHES "ERROR:|WARNING:|VUID-|SYNC-HAZARD")
        message(FATAL_ERROR "${name}: printed '${CMAKE_MATCH_0}'")
    endif()
    foreach(line ${arg_PRINTS})
        if(NOT output MATCHES "${line}")
            message(FATAL_ERROR "${name}: did not print '${line}'")
        endif()
    endforeach()
endfunction()

# The errors' numbers are the exit codes: 2 is ERR_UNAVAILABLE.
set(refusal "no rendering device. run without --headless .* call create_own_device with a selector")
godot("no display" 2 ARGUMENTS -s res://headless.gd PRINTS "create: ${refusal}" "create_own_device: ${refusal}")
if(skipped)
    return()
endif()
godot("the scene" 0 DISPLAY ARGUMENTS -- engine 60 PRINTS "60 tokens; .* missed it by 0\\.0")
godot("three devices" 0 DISPLAY VALIDATE ARGUMENTS -s res://checks.gd PRINTS "all checks passed")
godot("reload" 0 DISPLAY ARGUMENTS -s res://reload.gd PRINTS "all checks passed")
# The engine's own leftovers of an editor that ends so early, and its warning of that thread model, are not looked at.
godot("reload in the editor" 0 NOISY ARGUMENTS --editor -s res://editor.gd PRINTS "all checks passed")
godot("a render thread" 2 NOISY DISPLAY ARGUMENTS --render-thread separate -s res://threads.gd
    PRINTS "create: this is not the thread that renders" "create_own_device: this is not the thread that renders")
