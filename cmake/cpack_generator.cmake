# Read by cpack for each generator: the archive is one folder, made by an install component of its own.
if(CPACK_GENERATOR STREQUAL "TGZ")
    set(CPACK_COMPONENTS_ALL folder)
    set(CPACK_ARCHIVE_COMPONENT_INSTALL ON)
    set(CPACK_COMPONENTS_GROUPING ALL_COMPONENTS_IN_ONE)
    set(CPACK_COMPONENT_INCLUDE_TOPLEVEL_DIRECTORY ON)
    set(CPACK_PACKAGE_FILE_NAME "vkmqa-bench-${CPACK_PACKAGE_VERSION}-${CPACK_SYSTEM_NAME}-${CPACK_VKMQA_PROCESSOR}")
endif()
