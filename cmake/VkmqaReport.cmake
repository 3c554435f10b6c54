# The table that ends the configure step: what was found, what is built, what is skipped and why.
set_property(GLOBAL PROPERTY VKMQA_REPORT "")

function(vkmqa_report name text)
    string(LENGTH "${name}" length)
    math(EXPR pad "18 - ${length}")
    if(pad LESS 1)
        set(pad 1)
    endif()
    string(REPEAT " " ${pad} spaces)
    set_property(GLOBAL APPEND_STRING PROPERTY VKMQA_REPORT "  ${name}${spaces}${text}\n")
endfunction()

function(vkmqa_print_report)
    get_property(report GLOBAL PROPERTY VKMQA_REPORT)
    message(STATUS "vkmqa:\n${report}")
endfunction()
