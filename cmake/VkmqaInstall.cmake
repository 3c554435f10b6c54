# Installs headers, both libraries, the CMake package and vkmqa.pc. Release libraries are installed
# stripped whatever the generator's install target, as the size promise is about them.
include(CMakePackageConfigHelpers)
set(packageDir ${CMAKE_INSTALL_LIBDIR}/cmake/vkmqa)

install(DIRECTORY include/vkmqa TYPE INCLUDE FILES_MATCHING PATTERN "*.h")
install(TARGETS vkmqa_shared vkmqa_static EXPORT vkmqaTargets
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET vkmqa-bench)
    install(TARGETS vkmqa-bench RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(UNIX AND NOT APPLE AND CMAKE_STRIP)
    install(CODE "
        if(CMAKE_INSTALL_CONFIG_NAME STREQUAL Release)
            execute_process(COMMAND \"${CMAKE_STRIP}\" --strip-unneeded
                \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/$<TARGET_FILE_NAME:vkmqa_shared>\")
            execute_process(COMMAND \"${CMAKE_STRIP}\" --strip-debug
                \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/$<TARGET_FILE_NAME:vkmqa_static>\")
        endif()")
endif()

install(EXPORT vkmqaTargets NAMESPACE vkmqa:: DESTINATION ${packageDir})
configure_package_config_file(cmake/vkmqaConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/vkmqaConfig.cmake
    INSTALL_DESTINATION ${packageDir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/vkmqaConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/vkmqaConfig.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/vkmqaConfigVersion.cmake DESTINATION ${packageDir})

# Relative to the .pc file, so that a tree moved or installed by DESTDIR still works.
file(RELATIVE_PATH pcToPrefix /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
set(vulkanCflags "")
if(NOT VKMQA_VULKAN_INCLUDE_DIR IN_LIST CMAKE_C_IMPLICIT_INCLUDE_DIRECTORIES)
    set(vulkanCflags "-I${VKMQA_VULKAN_INCLUDE_DIR}")
endif()
configure_file(cmake/vkmqa.pc.in ${CMAKE_CURRENT_BINARY_DIR}/vkmqa.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/vkmqa.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
