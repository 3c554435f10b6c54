# Installs headers, both libraries, the CMake package, vkmqa.pc and vkmqa-bench. Release libraries are installed
# stripped whatever the generator's install target, as the size promise is about them.
# Components: runtime (the shared library), dev, bench.
include(CMakePackageConfigHelpers)
set(VKMQA_PACKAGE_runtime libvkmqa${interfaceVersion})
set(VKMQA_PACKAGE_dev libvkmqa-dev)
set(VKMQA_PACKAGE_bench vkmqa-bench)
set(packageDir ${CMAKE_INSTALL_LIBDIR}/cmake/vkmqa)

install(DIRECTORY include/vkmqa TYPE INCLUDE COMPONENT dev FILES_MATCHING PATTERN "*.h")
install(TARGETS vkmqa_shared vkmqa_static EXPORT vkmqaTargets
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT runtime
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT dev
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev)
if(TARGET vkmqa-bench)
    install(TARGETS vkmqa-bench RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT bench)
    install(FILES docs/vkmqa-bench.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT bench)
endif()
if(UNIX AND NOT APPLE AND CMAKE_STRIP)
    install(CODE "
        if(CMAKE_INSTALL_CONFIG_NAME STREQUAL Release)
            execute_process(COMMAND \"${CMAKE_STRIP}\" --strip-unneeded
                \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/$<TARGET_FILE_NAME:vkmqa_shared>\")
        endif()" COMPONENT runtime)
    install(CODE "
        if(CMAKE_INSTALL_CONFIG_NAME STREQUAL Release)
            execute_process(COMMAND \"${CMAKE_STRIP}\" --strip-debug
                \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/$<TARGET_FILE_NAME:vkmqa_static>\")
        endif()" COMPONENT dev)
endif()

install(EXPORT vkmqaTargets NAMESPACE vkmqa:: DESTINATION ${packageDir} COMPONENT dev)
configure_package_config_file(cmake/vkmqaConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/vkmqaConfig.cmake
    INSTALL_DESTINATION ${packageDir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/vkmqaConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/vkmqaConfig.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/vkmqaConfigVersion.cmake DESTINATION ${packageDir} COMPONENT dev)

# Relative to the .pc file, so that a tree moved or installed by DESTDIR still works.
file(RELATIVE_PATH pcToPrefix /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
set(vulkanCflags "")
if(NOT VKMQA_VULKAN_INCLUDE_DIR IN_LIST CMAKE_C_IMPLICIT_INCLUDE_DIRECTORIES)
    set(vulkanCflags "-I${VKMQA_VULKAN_INCLUDE_DIR}") # absolute: not of the installed tree
endif()
set(pcPrivate "")
if(UNIX)
    set(pcPrivate "-lpthread -ldl -lm")
endif()
configure_file(cmake/vkmqa.pc.in ${CMAKE_CURRENT_BINARY_DIR}/vkmqa.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/vkmqa.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)
foreach(component runtime dev bench)
    install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/doc/${VKMQA_PACKAGE_${component}} RENAME copyright
        COMPONENT ${component})
endforeach()

# The prebuilt archive: everything in one folder, where the tool finds the libraries. Of the system it needs the C
# library and a Vulkan driver.
if(TARGET vkmqa-bench-folder)
    install(TARGETS vkmqa-bench-folder vkmqa_shared EXCLUDE_FROM_ALL COMPONENT folder
        RUNTIME DESTINATION . LIBRARY DESTINATION . NAMELINK_SKIP)
    install(DIRECTORY include/vkmqa DESTINATION include COMPONENT folder EXCLUDE_FROM_ALL FILES_MATCHING PATTERN "*.h")
    install(FILES LICENSE README.md CHANGELOG.md docs/vkmqa-bench.1 DESTINATION . COMPONENT folder EXCLUDE_FROM_ALL)
    install(CODE "
        file(GET_RUNTIME_DEPENDENCIES EXECUTABLES $<TARGET_FILE:vkmqa-bench-folder> RESOLVED_DEPENDENCIES_VAR found
            PRE_INCLUDE_REGEXES [[popt]] [[cjson]] PRE_EXCLUDE_REGEXES .)
        foreach(library \${found})
            file(INSTALL \${library} DESTINATION \${CMAKE_INSTALL_PREFIX} FOLLOW_SYMLINK_CHAIN)
            get_filename_component(name \${library} NAME)
            string(REGEX REPLACE [[^(lib[a-z]+)\\.so\\.([0-9]+).*]] [[\\1\\2]] package \${name})
            if(EXISTS /usr/share/doc/\${package}/copyright)
                file(INSTALL /usr/share/doc/\${package}/copyright DESTINATION \${CMAKE_INSTALL_PREFIX}
                    RENAME LICENSE.\${package})
            endif()
        endforeach()" COMPONENT folder EXCLUDE_FROM_ALL)
endif()
include(VkmqaPackage)
