# SPDX-License-Identifier: Apache-2.0
# Writes the commit of the sources to commit.txt, which lies beside the compiled module: `aapt-fast doctor` names it.
#
# It is not compiled in: the hash of the module says for which build a GPU has verified its kernels, and a commit that
# changes no kernel must not end that record.

set(AAPT_COMMIT "" CACHE STRING "Commit of the sources; empty: that of the git checkout that they are, if they are one")

# Sets <result> to the commit, with -dirty behind it where tracked files differ, or to an empty text.
function(aapt_commit result)
  set(commit "${AAPT_COMMIT}")
  find_program(AAPT_GIT git)
  # A source tree inside of somebody else's checkout has no .git of its own.
  if(NOT commit AND AAPT_GIT AND EXISTS "${PROJECT_SOURCE_DIR}/.git")
    execute_process(COMMAND "${AAPT_GIT}" describe --always --dirty "--exclude=*" --abbrev=12
      WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
      OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(${result} "${commit}" PARENT_SCOPE)
endfunction()

aapt_commit(commit)
file(WRITE "${PROJECT_BINARY_DIR}/commit.txt" "${commit}\n")
