# Runs the desktop sample on a virtual display and checks its picture; prints what frames took with and without slices.
# -DDISPLAY= -DTOOLBOX= -DLEG= -DSAMPLE= -DPICTURE= -DWORK=
file(MAKE_DIRECTORY ${WORK})
file(REMOVE ${WORK}/shot.ppm)
execute_process(COMMAND ${DISPLAY} ${TOOLBOX} run ${LEG} -- ${SAMPLE} --frames 30 --context 8192
    --screenshot ${WORK}/shot.ppm OUTPUT_FILE ${WORK}/output.txt RESULT_VARIABLE code)
if(code EQUAL 77)
    message("skipped: the driver or the display is not at hand") # SKIP_REGULAR_EXPRESSION
    return()
endif()
if(NOT code EQUAL 0)
    message(FATAL_ERROR "the sample ended with ${code}")
endif()
file(READ ${WORK}/output.txt output)
message("${output}")
execute_process(COMMAND ${PICTURE} ${WORK}/shot.ppm ${WORK}/output.txt RESULT_VARIABLE code)
if(NOT code EQUAL 0)
    message(FATAL_ERROR "the picture is not what it has to be")
endif()
