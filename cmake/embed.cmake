# cmake -DNAME=x -P embed.cmake, in the folder of x.spv: writes x.spv.inc, the words as C integers, so
# that they are right on a host of either byte order.
file(READ ${NAME}.spv hex HEX)
string(REGEX REPLACE "(..)(..)(..)(..)" "0x\\4\\3\\2\\1," words "${hex}")
set(w "0x[^,]*,")
string(REGEX REPLACE "(${w}${w}${w}${w}${w}${w}${w}${w})" "\\1\n" words "${words}")
file(WRITE ${NAME}.spv.inc "${words}\n")

# The compiler's depfile names the file it wrote; the build asks about the last one of the chain, which
# exists only if every step before it, validation too, went well.
file(READ ${NAME}.d depfile)
string(REPLACE "${NAME}.spv:" "${NAME}.spv.inc:" depfile "${depfile}")
file(WRITE ${NAME}.d "${depfile}")
